// An exception that leaves a parallel region ends the program: memory may run out in any thread. So the
// threads hand what they throw to a Failure, and the caller gets it after the region:
//
//   Failure failure;
//   #pragma omp parallel
//   {
//       std::optional<Scratch> scratch;
//       failure.run([&] { scratch.emplace(...); });
//       #pragma omp for
//       for (...) failure.run([&] { ... *scratch ... });
//   }
//   failure.raise();
#pragma once

#include <atomic>
#include <exception>

namespace mdf::MDF_ISA {
namespace {

class Failure {
  public:
    // Runs the work unless any thread has failed before.
    template <class Work> void run(const Work &work) noexcept {
        if (failed_.load(std::memory_order_relaxed)) return;
        try {
            work();
        } catch (...) {
            if (!failed_.exchange(true)) first_ = std::current_exception();
        }
    }

    // Throws what was thrown first; to be called when all threads are done.
    void raise() const {
        if (first_) std::rethrow_exception(first_);
    }

  private:
    std::atomic<bool> failed_{false};
    std::exception_ptr first_;
};

}  // namespace
}  // namespace mdf::MDF_ISA
