#include "base/json.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/error.h"

namespace quatrain {
namespace {

// Deep enough for any real file; printing and walking recurse, so a hostile depth must not reach
// them.
constexpr size_t kMaxDepth = 512;

struct Position {
  size_t line = 1, column = 1;
};

// Line and column, both from 1, of the byte at `offset` of the text.
Position PositionOf(std::string_view text, size_t offset) {
  const std::string_view before = text.substr(0, std::min(offset, text.size()));
  const size_t newline = before.rfind('\n');
  return {
      .line = 1 + static_cast<size_t>(std::count(before.begin(), before.end(), '\n')),
      .column = newline == std::string_view::npos ? before.size() + 1 : before.size() - newline};
}

// A character iterator that tells its owner how far the parser has read.
class TrackingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  TrackingIterator(const char* current, const char** reached)
      : current_(current), reached_(reached) {}
  reference operator*() const { return *current_; }
  TrackingIterator& operator++() {
    *reached_ = ++current_;
    return *this;
  }
  TrackingIterator operator++(int) {
    TrackingIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const TrackingIterator& other) const { return current_ == other.current_; }
  bool operator!=(const TrackingIterator& other) const { return current_ != other.current_; }

 private:
  const char* current_;
  const char** reached_;
};

// Builds the value from parser events. Keys are appended to the ordered map's vector directly and
// checked by a hash set: the map's own insertion is linear, which makes a vocabulary of 150000 keys
// take minutes.
class Builder {
 public:
  Builder(std::string_view text, const std::string& where, size_t first_line)
      : text_(text), where_(where), first_line_(first_line) {}

  bool null() { return Put(Json(nullptr)); }
  bool boolean(bool value) { return Put(Json(value)); }
  bool number_integer(Json::number_integer_t value) { return Put(Json(value)); }
  bool number_unsigned(Json::number_unsigned_t value) { return Put(Json(value)); }
  bool number_float(Json::number_float_t value, const std::string& /*text*/) {
    return Put(Json(value));
  }
  bool string(std::string& value) { return Put(Json(std::move(value))); }
  bool binary(Json::binary_t& /*value*/) { return false; }

  bool start_object(size_t /*size*/) { return Open(Json::object()); }
  bool start_array(size_t /*size*/) { return Open(Json::array()); }
  bool end_object() { return Shut(); }
  bool end_array() { return Shut(); }

  bool key(std::string& name) {
    if (!open_.back().keys.insert(name).second) {
      Fail(LastRead(), "the key \"" + Shorten(name) + "\" appears twice",
           "every key of an object once");
    }
    open_.back().key = std::move(name);
    return true;
  }

  bool parse_error(size_t offset, const std::string& /*token*/, const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ..."
    std::string message = error.what();
    const size_t id_end = message.find("] ");
    if (id_end != std::string::npos) message.erase(0, id_end + 2);
    if (message.starts_with("parse error at ")) {
      const size_t colon = message.find(": ");
      if (colon != std::string::npos) message.erase(0, colon + 2);
    }
    const bool is_end = text_.find_first_not_of(" \t\r\n") == std::string_view::npos;
    Fail(offset > 0 ? offset - 1 : 0,
         is_end ? "not JSON: there is no text" : "not JSON: " + message, "");
  }

  Json Run() {
    reached_ = text_.data();
    const char* const end = text_.data() + text_.size();
    const bool whole = Json::sax_parse(TrackingIterator(text_.data(), &reached_),
                                       TrackingIterator(end, &reached_), this);
    QT_CHECK(whole && open_.empty());
    return std::move(root_);
  }

 private:
  struct Level {
    Json value;
    std::string key = {};  // of the object member being read
    std::unordered_set<std::string> keys = {};
  };

  size_t LastRead() const { return static_cast<size_t>(reached_ - text_.data()) - 1; }

  static std::string Shorten(const std::string& name) {
    return name.size() <= 200 ? name : name.substr(0, 200) + "...";
  }

  [[noreturn]] void Fail(size_t offset, const std::string& what,
                         const std::string& expected) const {
    const Position at = PositionOf(text_, offset);
    throw Error(ErrorCode::kData, {.where = fmt::format("{}: line {}, column {}", where_,
                                                        first_line_ - 1 + at.line, at.column),
                                   .what = what,
                                   .expected = expected});
  }

  bool Put(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (Level& level = open_.back(); level.value.is_array()) {
      level.value.get_ref<Json::array_t&>().push_back(std::move(value));
    } else {
      auto& members = level.value.get_ref<Json::object_t&>();
      static_cast<Json::object_t::Container&>(members).emplace_back(std::move(level.key),
                                                                    std::move(value));
    }
    return true;
  }

  bool Open(Json empty) {
    if (open_.size() >= kMaxDepth) {
      Fail(LastRead(), "not readable JSON: the brackets are nested too deeply",
           fmt::format("at most {} levels", kMaxDepth));
    }
    open_.push_back({.value = std::move(empty)});
    return true;
  }

  bool Shut() {
    Json value = std::move(open_.back().value);
    open_.pop_back();
    return Put(std::move(value));
  }

  std::string_view text_;
  const std::string& where_;
  const size_t first_line_;
  const char* reached_ = nullptr;
  std::vector<Level> open_;
  Json root_;
};

}  // namespace

Json ParseJson(std::string_view text, const std::string& where, size_t first_line) {
  return Builder(text, where, first_line).Run();
}

std::string DumpJson(const Json& json) {
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

}  // namespace quatrain
