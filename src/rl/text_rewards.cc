#include "rl/text_rewards.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <vector>

namespace quatrain {
namespace {

bool IsSpace(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }
bool IsLetter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

std::string Lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

std::string Trim(const std::string& text) {
  size_t begin = 0, end = text.size();
  while (begin < end && IsSpace(text[begin])) ++begin;
  while (end > begin && IsSpace(text[end - 1])) --end;
  return text.substr(begin, end - begin);
}

void ReplaceAll(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

// ---- dapo

// The last `count` code points of UTF-8.
std::string LastCharacters(const std::string& text, size_t count) {
  size_t begin = text.size();
  while (begin > 0 && count > 0) {
    --begin;
    if ((static_cast<unsigned char>(text[begin]) & 0xC0) != 0x80) --count;
  }
  return text.substr(begin);
}

// Behind the last "Answer:" to the end of its line; nothing if there is none, or nothing behind it.
std::optional<std::string> AnswerLine(const std::string& text) {
  const std::string lower = Lower(text);
  std::optional<std::string> line;
  for (size_t at = lower.find("answer"); at != std::string::npos;) {
    size_t place = at + 6;
    while (place < text.size() && IsSpace(text[place])) ++place;
    at = lower.find("answer", at + 1);
    if (place >= text.size() || text[place] != ':') continue;
    ++place;
    while (place < text.size() && IsSpace(text[place])) ++place;
    const size_t end = std::min(text.find('\n', place), text.size());
    if (end == place) continue;
    line = text.substr(place, end - place);
    at = lower.find("answer", end);
  }
  return line;
}

// "\text{five}" -> "five", all of them, to the first closing brace.
void OpenCommands(std::string& text, std::string_view command) {
  for (size_t at = text.find(command); at != std::string::npos; at = text.find(command, at)) {
    const size_t close = text.find('}', at);
    if (close == std::string::npos) return;
    text.erase(close, 1);
    text.erase(at, command.size());
  }
}

// "frac12" -> "frac{1}{2}", "sqrt2" -> "sqrt{2}".
void BraceArguments(std::string& text, std::string_view command, size_t num_arguments) {
  for (size_t at = text.find(command); at != std::string::npos; at = text.find(command, at + 1)) {
    const size_t begin = at + command.size();
    if (begin + num_arguments > text.size() || text[begin] == '{') continue;
    std::string braced;
    for (size_t i = 0; i < num_arguments; ++i) braced += std::string("{") + text[begin + i] + "}";
    text.replace(begin, num_arguments, braced);
  }
}

// A label that is a number, as the whole number that DAPO's labels are; others as they are.
std::string WholeNumber(const std::string& label) {
  double value = 0;
  const auto [end, status] = std::from_chars(label.data(), label.data() + label.size(), value);
  const bool is_number = status == std::errc() && end == label.data() + label.size();
  return is_number && std::abs(value) < 1e15 ? fmt::format("{}", static_cast<int64_t>(value))
                                             : label;
}

// ---- f1

std::vector<std::string> Words(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : Lower(text) + " ") {
    if (!IsSpace(c)) {
      if (std::ispunct(static_cast<unsigned char>(c)) == 0) word += c;
      continue;
    }
    if (!word.empty() && word != "a" && word != "an" && word != "the") words.push_back(word);
    word.clear();
  }
  return words;
}

bool IsClosedAnswer(const std::vector<std::string>& words) {
  return words.size() == 1 && (words[0] == "yes" || words[0] == "no" || words[0] == "noanswer");
}

// ---- gpqa

// Lower-case letters and digits, single spaces between, one at each end.
std::string PlainWords(const std::string& text) {
  std::string plain = " ";
  for (const char c : Lower(text)) {
    const bool is_kept = (c >= 'a' && c <= 'z') || IsDigit(c);
    if (is_kept) plain += c;
    if (!is_kept && plain.back() != ' ') plain += ' ';
  }
  if (plain.back() != ' ') plain += ' ';
  return plain;
}

struct Token {
  std::string text;  // a run of letters and digits, or one other character that is no space
  bool operator==(const char* other) const { return Lower(text) == other; }
};

std::vector<Token> Tokens(const std::string& text) {
  std::vector<Token> tokens;
  for (size_t i = 0; i < text.size();) {
    size_t end = i;
    while (end < text.size() && (IsLetter(text[end]) || IsDigit(text[end]))) ++end;
    if (end == i) ++end;
    if (!IsSpace(text[i])) tokens.push_back({text.substr(i, end - i)});
    i = end;
  }
  return tokens;
}

std::optional<char> LetterOf(const Token& token, const std::string& valid) {
  if (token.text.size() != 1 || !IsLetter(token.text[0])) return std::nullopt;
  const char letter = static_cast<char>(std::toupper(token.text[0]));
  if (valid.find(letter) == std::string::npos) return std::nullopt;
  return letter;
}

std::optional<char> ChosenLetter(const std::string& text, const std::string& valid) {
  const std::vector<Token> tokens = Tokens(text);
  const auto is_at = [&](size_t i, const char* word) {
    return i < tokens.size() && tokens[i] == word;
  };
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (!(tokens[i] == "answer" || tokens[i] == "option" || tokens[i] == "choice")) continue;
    size_t next = i + 1;
    while (is_at(next, "is") || is_at(next, ":") || is_at(next, "(") || is_at(next, "*")) ++next;
    // "the answer is a large ..." chooses nothing.
    if (next >= tokens.size() || tokens[next].text == "a") continue;
    if (const auto letter = LetterOf(tokens[next], valid)) return letter;
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    const bool is_followed =
        is_at(i + 1, "is") &&
        (is_at(i + 2, "correct") || (is_at(i + 2, "the") && is_at(i + 3, "correct")));
    const std::optional<char> letter = is_followed ? LetterOf(tokens[i], valid) : std::nullopt;
    if (letter) return letter;
  }
  for (size_t i = tokens.size(); i-- > 0;) {
    const bool is_capital = tokens[i].text[0] >= 'A' && tokens[i].text[0] <= 'Z';
    const std::optional<char> letter = is_capital ? LetterOf(tokens[i], valid) : std::nullopt;
    if (letter) return letter;
  }
  return std::nullopt;
}

struct Choices {
  std::vector<std::string> texts;
  std::string valid = "ABCDEFGHIJ";  // letters
  std::optional<char> correct = {};  // the right one
};

std::string TextOf(const Json& value) {
  return value.is_string() ? value.get<std::string>() : DumpJson(value);
}

Choices ReadChoices(const RewardInput& input) {
  Choices choices;
  const Json& metadata = input.metadata;
  if (metadata.is_object() && metadata.contains("choices")) {
    for (const auto& item : metadata["choices"].items())
      choices.texts.push_back(TextOf(item.value()));
    choices.valid = std::string("ABCDEFGHIJKLMNOPQRSTUVWXYZ").substr(0, choices.texts.size());
  }
  if (metadata.is_object() && metadata.contains("valid_letters")) {
    choices.valid.clear();
    for (const Json& letter : metadata["valid_letters"]) {
      for (const char c : TextOf(letter)) choices.valid += static_cast<char>(std::toupper(c));
    }
  }
  const auto take_letter = [&](const std::string& text) {
    if (!choices.correct) choices.correct = LetterOf({text}, choices.valid);
  };
  if (metadata.is_object() && metadata.contains("correct_letter"))
    take_letter(Trim(TextOf(metadata["correct_letter"])));
  const std::string label = Trim(input.label);
  take_letter(label);
  const bool is_index = label.size() == 1 && IsDigit(label[0]);
  const auto index = static_cast<size_t>(is_index ? label[0] - '0' : 0);
  const bool is_text =
      std::find(choices.texts.begin(), choices.texts.end(), label) != choices.texts.end();
  if (!choices.correct && is_index && !is_text && index < choices.valid.size())
    choices.correct = choices.valid[index];
  for (size_t i = 0; i < choices.texts.size() && i < choices.valid.size(); ++i) {
    if (!choices.correct && PlainWords(choices.texts[i]) == PlainWords(label))
      choices.correct = choices.valid[i];
  }
  return choices;
}

}  // namespace

std::string NormalizeDapoAnswer(std::string answer) {
  if (const size_t sign = answer.rfind('='); sign != std::string::npos)
    answer = answer.substr(sign + 1);
  static constexpr std::pair<std::string_view, std::string_view> kReplacements[] = {
      {"an ", ""},          {"a ", ""},
      {".$", "$"},          {"\\$", ""},
      {"\\ ", ""},          {" ", ""},
      {"mbox", "text"},     {",\\text{and}", ","},
      {"\\text{and}", ","}, {"\\text{m}", "\\text{}"}};
  static constexpr std::string_view kRemoved[] = {
      "square",       "ways",      "integers",   "dollars",      "mph",        "inches",
      "hours",        "km",        "units",      "\\ldots",      "sue",        "points",
      "feet",         "minutes",   "digits",     "cents",        "degrees",    "cm",
      "gm",           "pounds",    "meters",     "meals",        "edges",      "students",
      "multiples",    "\\text{s}", "\\text{.}",  "\\text{}^2",   "\\text{}^3", "\\text{}",
      "\\mathrm{th}", "^\\circ",   "^{\\circ}",  "\\;",          ",\\!",       "{,}",
      "\"",           "\\dots",    "<|im_end|>", "<|endoftext|>"};
  for (const auto& [from, to] : kReplacements) ReplaceAll(answer, from, to);
  for (const std::string_view word : kRemoved) ReplaceAll(answer, word, "");
  const size_t open = answer.find('$');
  const size_t close = open == std::string::npos ? open : answer.find('$', open + 1);
  if (close != std::string::npos) answer = answer.substr(open + 1, close - open - 1);
  for (const std::string_view command : {"\\text{", "\\textbf{", "\\overline{", "\\boxed{"})
    OpenCommands(answer, command);
  BraceArguments(answer, "frac", 2);
  BraceArguments(answer, "sqrt", 1);
  std::erase(answer, '$');
  std::string digits = answer;
  std::erase(digits, ',');
  if (!digits.empty() && std::all_of(digits.begin(), digits.end(), IsDigit)) answer = digits;
  return Trim(answer);
}

RewardResult ScoreDapo(const std::string& response, const std::string& label) {
  const std::optional<std::string> line = AnswerLine(LastCharacters(response, 300));
  if (!line) return {0.0, RewardVerdict::kNoAnswer, ""};
  const std::string normalised = NormalizeDapoAnswer(label);
  const std::string whole = WholeNumber(normalised);
  const std::string answer = NormalizeDapoAnswer(*line);
  const bool is_correct = answer == whole || answer == normalised;
  return {is_correct ? 1.0 : 0.0, is_correct ? RewardVerdict::kCorrect : RewardVerdict::kWrong,
          *line};
}

RewardResult ScoreF1(const RewardInput& input) {
  const std::vector<std::string> given = Words(input.response), wanted = Words(input.label);
  if (given.empty()) return {0.0, RewardVerdict::kNoAnswer, ""};
  RewardResult result{0.0, RewardVerdict::kWrong, input.response};
  if ((IsClosedAnswer(given) || IsClosedAnswer(wanted)) && given != wanted) return result;
  std::map<std::string, int> counts;
  for (const std::string& word : wanted) ++counts[word];
  int num_common = 0;
  for (const std::string& word : given) num_common += counts[word]-- > 0 ? 1 : 0;
  if (num_common == 0) return result;
  const double precision = num_common / static_cast<double>(given.size());
  const double recall = num_common / static_cast<double>(wanted.size());
  result.reward = 2 * precision * recall / (precision + recall);
  if (given.size() == wanted.size() && static_cast<size_t>(num_common) == given.size())
    result.verdict = RewardVerdict::kCorrect;
  return result;
}

RewardResult ScoreGpqa(const RewardInput& input) {
  const size_t think = input.response.rfind("</think>");
  const std::string text =
      think == std::string::npos ? input.response : input.response.substr(think + 8);
  const Choices choices = ReadChoices(input);
  const std::optional<char> letter = ChosenLetter(text, choices.valid);
  if (letter && choices.correct) {
    const bool is_correct = *letter == *choices.correct;
    return {is_correct ? 1.0 : 0.0, is_correct ? RewardVerdict::kCorrect : RewardVerdict::kWrong,
            std::string(1, *letter)};
  }
  std::string right = Trim(input.label);
  const size_t index = choices.correct ? choices.valid.find(*choices.correct) : std::string::npos;
  if (index < choices.texts.size()) right = choices.texts[index];
  const std::string target = PlainWords(right);
  if (right.size() > 1 && target != " " && PlainWords(text).find(target) != std::string::npos)
    return {1.0, RewardVerdict::kCorrect, right};
  return {0.0, letter ? RewardVerdict::kWrong : RewardVerdict::kNoAnswer,
          letter ? std::string(1, *letter) : ""};
}

}  // namespace quatrain
