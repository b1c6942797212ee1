#include "rl/remote_reward.h"

#include <gtest/gtest.h>
#include <httplib.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/error.h"
#include "rl/rollout.h"

namespace quatrain {
namespace {

// A server on a free port of the loopback.
class Server {
 public:
  using Handler = std::function<void(const Json& request, httplib::Response& response)>;

  explicit Server(Handler handler) {
    server_.Post("/reward",
                 [this, handler](const httplib::Request& request, httplib::Response& response) {
                   ++num_requests;
                   handler(ParseJson(request.body, "request"), response);
                 });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ~Server() {
    server_.stop();
    thread_.join();
  }

  RewardOptions Options() const {
    RewardOptions options;
    options.rm_type = "remote_rm";
    options.rm_url = "http://127.0.0.1:" + std::to_string(port_) + "/reward";
    options.rm_timeout = 30;
    options.rm_backoff = 0.01;
    return options;
  }

  std::atomic<int> num_requests = 0;

 private:
  httplib::Server server_;
  std::thread thread_;
  int port_ = 0;
};

void Answer(const std::string& text, httplib::Response& response) {
  response.set_content(text, "application/json");
}

RewardResult Score(const RewardOptions& options) {
  const std::string response = "4", label = "five";
  return MakeReward(options)->Score({response, label, "2 + 2?", {{"level", 1}}, 7});
}

std::string Failure(const RewardOptions& options) {
  try {
    Score(options);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(RemoteReward, SendsTheSampleAndReadsTheNumber) {
  Json seen;
  const Server server([&](const Json& request, httplib::Response& response) {
    seen = request;
    Answer("0.25", response);
  });
  EXPECT_EQ(Score(server.Options()).reward, 0.25);
  EXPECT_EQ(seen, Json({{"prompt", "2 + 2?"},
                        {"response", "4"},
                        {"label", "five"},
                        {"metadata", {{"level", 1}}}}));
}

TEST(RemoteReward, TakesTheEntryThatTheKeyNames) {
  const Server server([](const Json&, httplib::Response& response) {
    Answer(R"({"score": -1, "acc": true, "note": "x"})", response);
  });
  RewardOptions options = server.Options();
  EXPECT_NE(Failure(options).find("--reward-key"), std::string::npos);
  options.reward_key = "score";
  EXPECT_EQ(Score(options).reward, -1.0);
  EXPECT_EQ(Score(options).verdict, RewardVerdict::kWrong);
  options.reward_key = "acc";
  EXPECT_EQ(Score(options).reward, 1.0);
  options.reward_key = "note";
  EXPECT_NE(Failure(options), "");
}

TEST(RemoteReward, TriesAgainAfterFailuresOfTheServer) {
  int num_calls = 0;
  Server server([&](const Json&, httplib::Response& response) {
    Answer("1", response);
    if (++num_calls <= 2) response.status = 503;
  });
  EXPECT_EQ(Score(server.Options()).reward, 1.0);
  EXPECT_EQ(server.num_requests, 3);
}

TEST(RemoteReward, GivesUpWithTheUrlAndTheLastFailure) {
  Server server([](const Json&, httplib::Response& response) { response.status = 500; });
  RewardOptions options = server.Options();
  options.rm_max_attempts = 3;
  const std::string message = Failure(options);
  for (const std::string& part : {options.rm_url, std::string("3 attempts"), std::string("500")})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  EXPECT_EQ(server.num_requests, 3);
}

TEST(RemoteReward, ARequestThatIsWrongIsNotRepeated) {
  Server server([](const Json&, httplib::Response& response) {
    response.status = 400;
    response.set_content("no such model", "text/plain");
  });
  EXPECT_NE(Failure(server.Options()).find("400: no such model"), std::string::npos);
  EXPECT_EQ(server.num_requests, 1);
}

TEST(RemoteReward, ASlowServerIsNotWaitedForLongerThanTheTimeOut) {
  Server server([](const Json&, httplib::Response& response) {
    std::this_thread::sleep_for(std::chrono::milliseconds(600));
    Answer("1", response);
  });
  RewardOptions options = server.Options();
  options.rm_timeout = 0.1;
  options.rm_max_attempts = 2;
  EXPECT_NE(Failure(options).find("no answer within 0.1 s"), std::string::npos);
}

TEST(RemoteReward, WhatIsNoRewardAndNoServerIsNamed) {
  const Server server(
      [](const Json&, httplib::Response& response) { Answer("\"good\"", response); });
  EXPECT_NE(Failure(server.Options()).find("good"), std::string::npos);
  EXPECT_NE(Failure({.rm_type = "remote_rm"}).find("--rm-url"), std::string::npos);
  EXPECT_NE(Failure({.rm_type = "remote_rm", .rm_url = "localhost:80"}).find("http://"),
            std::string::npos);
  RewardOptions closed = server.Options();
  closed.rm_url = "http://127.0.0.1:1/reward";
  closed.rm_max_attempts = 2;
  EXPECT_NE(Failure(closed).find("2 attempts"), std::string::npos);
}

TEST(RemoteReward, SamplesAreScoredSideBySideAndKeepTheirPlaces) {
  std::atomic<int> num_inside = 0, most_inside = 0;
  const Server server([&](const Json& request, httplib::Response& response) {
    const int inside = ++num_inside;
    int most = most_inside;
    while (most < inside && !most_inside.compare_exchange_weak(most, inside)) {
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    --num_inside;
    Answer(request["response"].get<std::string>(), response);
  });
  std::vector<Sample> samples(8);
  std::vector<Sample*> pointers;
  for (size_t i = 0; i < samples.size(); ++i) {
    samples[i].response_text = std::to_string(i);
    pointers.push_back(&samples[i]);
  }
  ScoreSamples(*MakeReward(server.Options()), pointers);
  for (size_t i = 0; i < samples.size(); ++i)
    EXPECT_EQ(samples[i].reward.reward, static_cast<double>(i));
  EXPECT_GT(most_inside, 1);
}

}  // namespace
}  // namespace quatrain
