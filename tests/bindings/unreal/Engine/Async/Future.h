#pragma once

#include "CoreMinimal.h"

#include <future>

template <class T>
class TFuture
{
public:
	TFuture() {}
	explicit TFuture(std::future<T> Future_) : Future(std::move(Future_)) {}
	bool IsReady() const { return Future.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }
	void Wait() const { Future.wait(); }

private:
	std::future<T> Future;
};
