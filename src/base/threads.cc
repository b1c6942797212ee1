#include "base/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"

namespace quatrain {
namespace {

// How long a thread spins before it sleeps: about the cost of a futex sleep and wake-up.
constexpr std::chrono::microseconds kSpin{30};
constexpr int64_t kNoChunk = std::numeric_limits<int64_t>::max();
constexpr int kWakeFanOut = 2;

// Beside a busy process a worker may lose its CPU in the middle of a chunk and hold up the caller
// for a time slice (about 4 ms); and waking one may cost more than a short job gains. The caller
// keeps a balance of the time that its workers saved. Once it is kTolerance below zero, the caller
// works alone for a multiple of the loss, which doubles from rest to rest until the workers have
// earned a full credit again: beside a process that stays, they cost less and less.
using Clock = std::chrono::steady_clock;
constexpr Clock::duration kMostCredit = std::chrono::milliseconds{4};
constexpr Clock::duration kTolerance = std::chrono::microseconds{200};  // sleepers need a while
constexpr int kLeastRestFactor = 40;
constexpr int kMostRestFactor = 640;
constexpr int kMostImbalance = 4;  // a worker's chunk that took longer has been interrupted

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
bool SpinUntil(const Condition& condition) {
  const auto deadline = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (condition()) return true;
      Pause();
    }
  } while (Clock::now() < deadline);
  return false;
}

int NumAvailableCpus() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) return std::max(1, CPU_COUNT(&cpus));
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// Bars the calling thread from one CPU, which moves it elsewhere at once, and lets it back in, so
// that the scheduler may still move it away from another process. Harmless if refused.
void LeaveCpu(int cpu, const cpu_set_t& allowed) {
  cpu_set_t others = allowed;
  CPU_CLR(static_cast<size_t>(cpu), &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof(others), &others) != 0) return;
  sched_setaffinity(0, sizeof(allowed), &allowed);
}

// Which pool's body this thread is inside of, so that a nested call can run serially.
struct Inside {
  const void* pool = nullptr;
  int worker = 0;
};
thread_local Inside inside;

class ScopedInside {
 public:
  ScopedInside(const void* pool, int worker) : outer_(inside) { inside = {pool, worker}; }
  ~ScopedInside() { inside = outer_; }
  ScopedInside(const ScopedInside&) = delete;
  ScopedInside& operator=(const ScopedInside&) = delete;

 private:
  Inside outer_;
};

}  // namespace

// The protocol. `ticket` is (generation << 32) | chunks not yet taken. A thread takes a chunk by a
// compare-exchange that lowers the count by one, so it succeeds only while that very job still has
// an untaken chunk: the job cannot end, and its fields cannot change, between reading them and the
// exchange. Zero left means "nothing to do" whatever the fields say, so a late worker never touches
// a finished job. The caller waits for `pending` (chunks not yet finished), that is for workers
// that did take a chunk, never for one that has yet to wake up.
struct ThreadPool::State {
  struct JobTimes {
    Clock::duration whole;  // of the call
    Clock::duration own;    // of the caller's chunks
    uint32_t own_chunks;
    uint32_t other_chunks;
  };

  explicit State(int threads) : num_threads(threads), spins(threads <= NumAvailableCpus()) {}

  const int num_threads;
  const bool spins;  // with more threads than CPUs a spinning thread holds up a working one
  std::vector<std::thread> workers;
  std::atomic<bool> busy{false};
  Clock::duration balance{};        // the caller's, under busy
  Clock::time_point alone_until{};  // the same
  int rest_factor = kLeastRestFactor;

  alignas(64) std::atomic<uint64_t> ticket{0};
  std::atomic<int64_t> num_chunks{0};
  std::atomic<const FunctionRef<void(int64_t, int)>*> body{nullptr};

  alignas(64) std::atomic<uint32_t> pending{0};
  std::atomic<Clock::rep> worker_time{0};      // spent in the job's chunks by all workers
  alignas(64) std::atomic<uint32_t> epoch{0};  // changes when a job starts: what workers sleep on
  std::atomic<int> caller_cpu{-1};             // where the job started
  std::atomic<bool> stop{false};

  alignas(64) std::atomic<int64_t> failed_chunk{kNoChunk};  // the lowest that threw
  std::mutex error_mutex;
  std::exception_ptr error;  // of failed_chunk, under error_mutex

  void WakeSome();
  uint32_t TakeChunks(int worker);
  void RunChunk(int64_t chunk, int worker, const FunctionRef<void(int64_t, int)>& run);
  void WorkerLoop(int worker);
  void RunAlone(int64_t chunks, const FunctionRef<void(int64_t, int)>& run);
  void WaitForWorkers();
  void Settle(const JobTimes& times);
  void RunJob(int64_t chunks, const FunctionRef<void(int64_t, int)>& run);
};

// Wakes at most two sleepers; each of them wakes two more while chunks are left.
void ThreadPool::State::WakeSome() {
  for (int i = 0; i < std::min(kWakeFanOut, num_threads - 1); ++i) epoch.notify_one();
}

void ThreadPool::State::RunChunk(int64_t chunk, int worker,
                                 const FunctionRef<void(int64_t, int)>& run) {
  // Chunks are taken in ascending order, so a chunk above a failed one cannot be the lowest to
  // fail.
  if (chunk > failed_chunk.load(std::memory_order_relaxed)) return;
  try {
    run(chunk, worker);
  } catch (...) {
    const std::lock_guard lock(error_mutex);
    if (chunk < failed_chunk.load(std::memory_order_relaxed)) {
      failed_chunk.store(chunk, std::memory_order_relaxed);
      error = std::current_exception();
    }
  }
}

// Takes and runs chunks of the current job until none is left; returns how many.
uint32_t ThreadPool::State::TakeChunks(int worker) {
  uint32_t taken = 0;
  uint64_t now = ticket.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(now) != 0) {
    const int64_t total = num_chunks.load(std::memory_order_relaxed);
    const auto* run = body.load(std::memory_order_relaxed);
    if (!ticket.compare_exchange_weak(now, now - 1, std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
      continue;
    }
    const auto left = static_cast<uint32_t>(now);
    if (taken == 0 && worker != 0 && left > 1) WakeSome();
    RunChunk(total - left, worker, *run);
    ++taken;
    now = ticket.load(std::memory_order_acquire);
  }
  return taken;
}

void ThreadPool::State::WorkerLoop(int worker) {
  const ScopedInside scope(this, worker);
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  const bool may_move = spins && sched_getaffinity(0, sizeof(allowed), &allowed) == 0;
  uint32_t seen = 0;
  while (!stop.load(std::memory_order_acquire)) {
    const auto changed = [&] { return epoch.load(std::memory_order_acquire) != seen; };
    if (!(spins && SpinUntil(changed))) epoch.wait(seen);
    seen = epoch.load(std::memory_order_acquire);
    // Some kernels wake a thread on the caller's CPU and leave it queued there while another CPU
    // idles.
    const int caller = caller_cpu.load(std::memory_order_relaxed);
    if (may_move && caller >= 0 && sched_getcpu() == caller) LeaveCpu(caller, allowed);
    const auto begin = Clock::now();
    const uint32_t taken = TakeChunks(worker);
    if (taken == 0) continue;  // too late: the job may be over
    worker_time.fetch_add((Clock::now() - begin).count(), std::memory_order_relaxed);
    if (pending.fetch_sub(taken) == taken) pending.notify_one();
  }
}

void ThreadPool::State::WaitForWorkers() {
  const auto done = [&] { return pending.load(std::memory_order_acquire) == 0; };
  if (spins && SpinUntil(done)) return;
  uint32_t unfinished = 0;
  while ((unfinished = pending.load(std::memory_order_acquire)) != 0) pending.wait(unfinished);
}

// Books the time of a job against what the caller would have needed alone.
void ThreadPool::State::Settle(const JobTimes& times) {
  const Clock::duration most =
      times.own / std::max(1u, times.own_chunks) * times.other_chunks * kMostImbalance;
  const Clock::duration others(worker_time.load(std::memory_order_relaxed));
  balance = std::min(balance + times.own + std::min(others, most) - times.whole, kMostCredit);
  if (balance == kMostCredit) rest_factor = kLeastRestFactor;
  if (balance > -kTolerance) return;
  alone_until = Clock::now() - balance * rest_factor;
  rest_factor = std::min(2 * rest_factor, kMostRestFactor);
  balance = Clock::duration::zero();
}

void ThreadPool::State::RunAlone(int64_t chunks, const FunctionRef<void(int64_t, int)>& run) {
  failed_chunk.store(kNoChunk, std::memory_order_relaxed);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) RunChunk(chunk, 0, run);
}

void ThreadPool::State::RunJob(int64_t chunks, const FunctionRef<void(int64_t, int)>& run) {
  const auto begin = Clock::now();
  num_chunks.store(chunks, std::memory_order_relaxed);
  body.store(&run, std::memory_order_relaxed);
  pending.store(static_cast<uint32_t>(chunks), std::memory_order_relaxed);
  worker_time.store(0, std::memory_order_relaxed);
  failed_chunk.store(kNoChunk, std::memory_order_relaxed);
  const uint64_t generation = (ticket.load(std::memory_order_relaxed) >> 32) + 1;
  if (spins) caller_cpu.store(sched_getcpu(), std::memory_order_relaxed);
  ticket.store((generation << 32) | static_cast<uint64_t>(chunks), std::memory_order_release);
  epoch.store(static_cast<uint32_t>(generation));  // sequentially consistent: see notify_one
  WakeSome();

  const auto own_begin = Clock::now();
  const uint32_t taken = TakeChunks(0);
  const auto own_end = Clock::now();
  if (pending.fetch_sub(taken) != taken) WaitForWorkers();
  Settle({.whole = Clock::now() - begin,
          .own = own_end - own_begin,
          .own_chunks = taken,
          .other_chunks = static_cast<uint32_t>(chunks) - taken});
}

ThreadPool::ThreadPool(int num_threads) {
  QT_CHECK(num_threads >= 0, "num_threads is {}", num_threads);
  state_ = std::make_unique<State>(num_threads > 0 ? num_threads : NumAvailableCpus());
  for (int worker = 1; worker < state_->num_threads; ++worker) {
    state_->workers.emplace_back([state = state_.get(), worker] { state->WorkerLoop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_release);
  state_->epoch.fetch_add(1);
  state_->epoch.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::num_threads() const { return state_->num_threads; }

void ThreadPool::ParallelFor(int64_t num_chunks, FunctionRef<void(int64_t, int)> body) {
  QT_CHECK(num_chunks >= 0 && num_chunks <= std::numeric_limits<uint32_t>::max(),
           "num_chunks is {}", num_chunks);
  State& state = *state_;
  const bool nested = inside.pool == &state;
  if (nested || num_chunks <= 1 || state.num_threads == 1) {
    const int worker = nested ? inside.worker : 0;
    const ScopedInside scope(&state, worker);
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) body(chunk, worker);
    return;
  }
  QT_CHECK(!state.busy.exchange(true, std::memory_order_acquire),
           "two threads called ParallelFor of one pool at the same time");
  {
    const ScopedInside scope(&state, 0);
    if (Clock::now() < state.alone_until) {
      state.RunAlone(num_chunks, body);
    } else {
      state.RunJob(num_chunks, body);
    }
  }
  std::exception_ptr error;
  std::swap(error, state.error);
  state.busy.store(false, std::memory_order_release);
  if (error) std::rethrow_exception(error);
}

}  // namespace quatrain
