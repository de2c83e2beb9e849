#pragma once

#include "Async/Future.h"

#include <atomic>
#include <thread>

enum class EAsyncExecution { Thread };

/** How many threads have not fulfilled their promises. */
inline std::atomic<int32> StubBusyThreads{0};

/** As in the engine, a future that goes does not wait for its thread. These take their time. */
template <class F>
TFuture<void> Async(EAsyncExecution, F&& Function)
{
	std::promise<void> Promise;
	TFuture<void> Future(Promise.get_future());
	++StubBusyThreads;
	std::thread([Promise = std::move(Promise), Function = std::forward<F>(Function)]() mutable
	{
		Function();
		std::this_thread::sleep_for(std::chrono::milliseconds(20));
		--StubBusyThreads;
		Promise.set_value();
	}).detach();
	return Future;
}
