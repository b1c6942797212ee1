// One pool of threads for the whole process: fixed chunks, taken dynamically.
//
// Who runs a chunk changes nothing, so results never depend on the thread count: callers cut work
// by the problem alone, or by num_threads() too where no sum crosses a cut. Workers spin briefly
// after a job and then sleep, so that a busy neighbour on the machine costs little. The caller
// works too: num_threads == 1 starts no thread at all.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

namespace quatrain {

// Non-owning reference to a callable, valid while the callable lives.
template <class Signature>
class FunctionRef;
template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, FunctionRef>>>
  FunctionRef(F&& f)  // NOLINT: implicit by design
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}
  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

class ThreadPool {
 public:
  // num_threads >= 1 counts the calling thread; 0 takes the CPUs this process may run on
  // (sched_getaffinity).
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Calls body(chunk, worker) once for each chunk in [0, num_chunks); worker in [0, num_threads())
  // names the calling thread, for scratch memory. Returns when all are done. The exception of the
  // lowest chunk that threw is rethrown. Called from inside a body it runs serially with the same
  // worker id. One outer call at a time. A body must not wait for another chunk: one thread may run
  // them all.
  void ParallelFor(int64_t num_chunks, FunctionRef<void(int64_t chunk, int worker)> body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace quatrain
