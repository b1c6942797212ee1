#include "base/interrupt.h"

#include <signal.h>

#include <atomic>

namespace quatrain {
namespace {

// The one flag a signal handler may touch; nothing but the handler writes it.
std::atomic<bool> requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void OnSignal(int signal_number) {
  if (!requested.exchange(true)) return;
  // The second one: die of it, as if no handler had been there.
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

}  // namespace

void InstallInterruptHandler() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool InterruptRequested() { return requested.load(std::memory_order_relaxed); }

}  // namespace quatrain
