// Threads that do the parts of one call together, one part after the other, each in pieces.
//
//     worker.pieces(part)         how many there are
//     worker.work(part, piece)    does one; every thread has a worker of its own
//
// A step of one token is some hundred parts of a few microseconds: to start and stop threads for each would take as
// long. A part is over when its pieces are done, whoever did them: a thread that another program interrupts holds up
// the piece that it is at, and no part otherwise. Who finds nothing to do spins for some microseconds, then lets other
// programs run; between calls threads sleep. Which thread does a piece never changes a result.
#pragma once

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

class Team {
    static constexpr int SPINS = 2000;

    const int64_t size;
    std::mutex one_call, waking;
    std::condition_variable wake;
    const std::function<void()>* work = nullptr;           // until nothing is left, or nothing for some microseconds
    alignas(64) std::atomic<uint64_t> calls{0};            // odd while there is one
    alignas(64) std::atomic<int64_t> inside{0};            // threads that may look at the call
    alignas(64) std::atomic<uint64_t> next{0};             // part * 2^32 + the first piece that is not taken
    alignas(64) std::atomic<int64_t> done{0};              // pieces of that part

    static void pause() {
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    template <typename Worker> void work_on(int64_t parts, Worker& worker) {
        for (int spins = 0; spins < SPINS;) {
            const uint64_t seen = next.load(std::memory_order_acquire);
            if (int64_t(seen >> 32) == parts) return;
            if (int64_t(uint32_t(seen)) >= worker.pieces(int64_t(seen >> 32))) {
                pause(), ++spins;
                continue;
            }
            const uint64_t taken = next.fetch_add(1, std::memory_order_acq_rel);
            const int64_t part = int64_t(taken >> 32), piece = int64_t(uint32_t(taken));
            if (part == parts) return;
            const int64_t pieces = worker.pieces(part);
            if (piece >= pieces) continue;
            worker.work(part, piece);
            spins = 0;
            if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == pieces) {
                done.store(0, std::memory_order_relaxed);
                next.store(uint64_t(part + 1) << 32, std::memory_order_release);
            }
        }
    }

    void help() {
        for (uint64_t seen = 0;;) {
            const auto is_called = [&] {
                const uint64_t now = calls.load();
                return now != seen && now % 2;
            };
            for (int spins = 0; spins < SPINS && !is_called(); ++spins) pause();
            if (!is_called()) {
                std::unique_lock<std::mutex> lock(waking);
                wake.wait(lock, is_called);
            }
            for (seen = calls.load(); seen % 2 && calls.load() == seen; sched_yield()) {
                inside.fetch_add(1);
                if (calls.load() == seen) (*work)();
                inside.fetch_sub(1);
            }
        }
    }

  public:
    explicit Team(int64_t size) : size(size) {
        for (int64_t i = 1; i < size; ++i) std::thread([this] { help(); }).detach();
    }

    // Does all pieces of all parts; make_worker() makes each thread's worker. One call at a time.
    template <typename MakeWorker> void run(int64_t parts, MakeWorker make_worker) {
        const std::lock_guard<std::mutex> alone(one_call);
        next.store(0);
        const std::function<void()> do_work = [&] {
            auto worker = make_worker();
            work_on(parts, worker);
        };
        if (size > 1) {
            const std::lock_guard<std::mutex> lock(waking);
            work = &do_work;
            calls.fetch_add(1);
        }
        wake.notify_all();
        const auto is_over = [&] { return int64_t(next.load(std::memory_order_acquire) >> 32) == parts; };
        for (do_work(); !is_over(); do_work()) sched_yield();
        if (size == 1) return;
        calls.fetch_add(1);
        for (int spins = 0; inside.load(); ++spins) spins < SPINS ? pause() : void(sched_yield());
    }

    // The team of so many threads; teams stay, asleep, as long as the process.
    static Team& of(int64_t size) {
        static std::mutex making;
        static std::vector<Team*>& teams = *new std::vector<Team*>;
        const std::lock_guard<std::mutex> lock(making);
        for (Team* team : teams) {
            if (team->size == size) return *team;
        }
        teams.push_back(new Team(size));
        return *teams.back();
    }
};

}  // namespace
