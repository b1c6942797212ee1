#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace quatrain {
namespace {

TEST(ThreadPool, RunsEveryChunkExactlyOnceForAnyThreadCount) {
  for (const int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (const int64_t num_chunks : {0, 1, 2, 3, 7, 64, 1000}) {
      std::vector<int> runs(static_cast<size_t>(num_chunks), 0);
      pool.ParallelFor(num_chunks, [&](int64_t chunk, int worker) {
        EXPECT_GE(worker, 0);
        EXPECT_LT(worker, num_threads);
        ++runs[static_cast<size_t>(chunk)];
      });
      EXPECT_EQ(runs, std::vector<int>(static_cast<size_t>(num_chunks), 1));
    }
  }
}

TEST(ThreadPool, TakesTheCpusOfTheProcessByDefault) {
  ThreadPool pool;
  EXPECT_GE(pool.num_threads(), 1);
}

TEST(ThreadPool, ManyShortJobsInARowLoseNoWrite) {
  ThreadPool pool(4);
  std::vector<int64_t> values(16);
  for (int64_t round = 0; round < 20000; ++round) {
    pool.ParallelFor(round % 17,
                     [&](int64_t chunk, int) { values[static_cast<size_t>(chunk)] += round; });
  }
  for (int64_t chunk = 0; chunk < 16; ++chunk) {
    int64_t expected = 0;
    for (int64_t round = 0; round < 20000; ++round) expected += round % 17 > chunk ? round : 0;
    EXPECT_EQ(values[static_cast<size_t>(chunk)], expected);
  }
}

TEST(ThreadPool, WorkersThatFellAsleepJoinALaterJob) {
  ThreadPool pool(3);
  bool all_joined = false;
  for (int round = 0; round < 50 && !all_joined; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    // Each chunk waits a while for all three threads to hold one.
    std::atomic<int> arrived{0};
    std::set<int> workers;
    std::mutex mutex;
    pool.ParallelFor(3, [&](int64_t, int worker) {
      ++arrived;
      for (int i = 0; i < 10000 && arrived.load() < 3; ++i) std::this_thread::yield();
      const std::lock_guard lock(mutex);
      workers.insert(worker);
    });
    all_joined = workers.size() == 3;
  }
  EXPECT_TRUE(all_joined);
}

TEST(ThreadPool, WorkerIdsOfChunksRunningAtTheSameTimeDiffer) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> users(4);
  std::atomic<int> collisions{0};
  pool.ParallelFor(2000, [&](int64_t, int worker) {
    auto& mine = users[static_cast<size_t>(worker)];
    if (mine.fetch_add(1) != 0) ++collisions;
    mine.fetch_sub(1);
  });
  EXPECT_EQ(collisions.load(), 0);
}

TEST(ThreadPool, RethrowsTheExceptionOfTheLowestChunkThatThrew) {
  for (const int num_threads : {1, 2, 4}) {
    ThreadPool pool(num_threads);
    for (int round = 0; round < 200; ++round) {
      try {
        pool.ParallelFor(64, [&](int64_t chunk, int) {
          if (chunk >= 5 && chunk % 2 == 1) throw std::runtime_error(std::to_string(chunk));
        });
        FAIL() << "nothing was thrown";
      } catch (const std::runtime_error& error) {
        EXPECT_STREQ(error.what(), "5");
      }
    }
    std::atomic<int> runs{0};
    pool.ParallelFor(10, [&](int64_t, int) { ++runs; });
    EXPECT_EQ(runs.load(), 10) << "the pool is usable after a failed job";
  }
}

TEST(ThreadPool, NestedCallsRunSeriallyWithTheSameWorkerId) {
  ThreadPool pool(4);
  std::atomic<int> inner_runs{0};
  std::atomic<int> strangers{0};
  pool.ParallelFor(16, [&](int64_t, int worker) {
    const auto thread = std::this_thread::get_id();
    int64_t next = 0;
    pool.ParallelFor(8, [&](int64_t chunk, int inner_worker) {
      if (chunk != next++ || inner_worker != worker) ++strangers;
      if (std::this_thread::get_id() != thread) ++strangers;
      ++inner_runs;
    });
  });
  EXPECT_EQ(inner_runs.load(), 16 * 8);
  EXPECT_EQ(strangers.load(), 0);
}

TEST(ThreadPool, ABodyMayUseAnotherPool) {
  ThreadPool outer(2);
  std::atomic<int> runs{0};
  outer.ParallelFor(4, [&](int64_t, int) {
    ThreadPool inner(2);
    inner.ParallelFor(8, [&](int64_t, int) { ++runs; });
  });
  EXPECT_EQ(runs.load(), 32);
}

TEST(ThreadPool, ASecondOuterCallAtTheSameTimeIsACaughtBug) {
  ThreadPool pool(2);
  std::atomic<bool> refused{false};
  pool.ParallelFor(2, [&](int64_t chunk, int) {
    if (chunk != 0) return;
    std::thread intruder([&] {
      try {
        pool.ParallelFor(2, [](int64_t, int) {});
      } catch (const Error& error) {
        refused = error.code() == ErrorCode::kInternal;
      }
    });
    intruder.join();
  });
  EXPECT_TRUE(refused.load());
}

TEST(ThreadPool, RefusesANegativeCount) {
  EXPECT_THROW(ThreadPool pool(-1), Error);
  ThreadPool pool(2);
  EXPECT_THROW(pool.ParallelFor(-1, [](int64_t, int) {}), Error);
}

}  // namespace
}  // namespace quatrain
