#include "rl/remote_reward.h"

#include <httplib.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <thread>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/random.h"

namespace quatrain {
namespace {

constexpr int kConcurrentCalls = 32;
constexpr double kMaxBackoff = 30;  // seconds

bool IsWorthTryingAgain(int status) { return status == 408 || status == 429 || status >= 500; }

// In slices, so that Ctrl-C is heard.
void Sleep(double seconds) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < until) {
    if (InterruptRequested())
      throw Error(ErrorCode::kInterrupted, "interrupted while waiting for --rm-url");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

class RemoteReward : public Reward {
 public:
  explicit RemoteReward(const RewardOptions& options) : options_(options) {
    const std::string& url = options.rm_url;
    const size_t scheme = url.find("://");
    const bool is_http = url.starts_with("http://") || url.starts_with("https://");
    if (!is_http || scheme + 3 >= url.size()) {
      throw Error(ErrorCode::kUsage, {.where = "--rm-url",
                                      .what = "--rm-type remote_rm needs a server",
                                      .expected = "http://HOST:PORT/PATH or https://...",
                                      .found = url.empty() ? "none" : "'" + url + "'"});
    }
    const size_t path = std::min(url.find('/', scheme + 3), url.size());
    server_ = url.substr(0, path);
    path_ = path == url.size() ? "/" : url.substr(path);
  }

  int concurrency() const override { return kConcurrentCalls; }

  RewardResult Score(const RewardInput& input) const override {
    const std::string body = DumpJson({{"prompt", input.prompt},
                                       {"response", input.response},
                                       {"label", input.label},
                                       {"metadata", input.metadata}});
    std::string failure;
    for (int attempt = 1; attempt <= options_.rm_max_attempts; ++attempt) {
      if (const std::optional<std::string> answer = Post(body, failure)) return ReadAnswer(*answer);
      if (attempt == options_.rm_max_attempts) break;
      const double jitter = UniformDouble(input.key, 0x726d, static_cast<uint64_t>(attempt));
      const double wait = std::min(std::ldexp(options_.rm_backoff, attempt - 1), kMaxBackoff) +
                          std::min(1.0, options_.rm_backoff) * jitter;
      Log().warn("{}: {}; trying again in {:.1f} s ({} of {})", options_.rm_url, failure, wait,
                 attempt, options_.rm_max_attempts);
      Sleep(wait);
    }
    throw Error(
        ErrorCode::kIo,
        {.where = "--rm-url " + options_.rm_url,
         .what = fmt::format("no reward after {} attempts: {}", options_.rm_max_attempts, failure),
         .todo = "Check that the server runs and answers within --rm-timeout seconds"});
  }

 private:
  // The answer's body; nothing and the reason if it is worth trying again.
  std::optional<std::string> Post(const std::string& body, std::string& failure) const {
    httplib::Client client(server_);
    const auto timeout = std::chrono::microseconds(std::llround(options_.rm_timeout * 1e6));
    client.set_connection_timeout(timeout);
    client.set_read_timeout(timeout);
    client.set_write_timeout(timeout);
    const httplib::Result result = client.Post(path_, body, "application/json");
    if (!result) {
      const bool is_late = result.error() == httplib::Error::Read;
      failure = is_late ? fmt::format("no answer within {:g} s", options_.rm_timeout)
                        : httplib::to_string(result.error());
      return std::nullopt;
    }
    if (result->status == 200) return result->body;
    failure = fmt::format("status {}", result->status);
    if (IsWorthTryingAgain(result->status)) return std::nullopt;
    throw Error(ErrorCode::kIo, {.where = "--rm-url " + options_.rm_url,
                                 .what = "the server refused the request",
                                 .expected = "status 200",
                                 .found = failure + ": " + result->body.substr(0, 200)});
  }

  RewardResult ReadAnswer(const std::string& text) const {
    const std::string where = "answer of --rm-url " + options_.rm_url;
    Json value = ParseJson(text, where);
    const std::string& key = options_.reward_key;
    if (value.is_object() && !key.empty() && value.contains(key)) value = Json(value[key]);
    if (!value.is_number() && !value.is_boolean()) {
      const bool needs_key = value.is_object();
      throw Error(ErrorCode::kData,
                  {.where = where,
                   .what = "no reward in it",
                   .expected = needs_key ? "an object with a number under --reward-key"
                                         : "a number, true or false",
                   .found = text.substr(0, 200)});
    }
    const double reward =
        value.is_boolean() ? (value.get<bool>() ? 1.0 : 0.0) : value.get<double>();
    return {reward, reward > 0 ? RewardVerdict::kCorrect : RewardVerdict::kWrong, ""};
  }

  RewardOptions options_;
  std::string server_, path_;
};

}  // namespace

std::unique_ptr<Reward> MakeRemoteReward(const RewardOptions& options) {
  return std::make_unique<RemoteReward>(options);
}

}  // namespace quatrain
