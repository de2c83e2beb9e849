#pragma once

#include "Async/Future.h"

enum class EAsyncExecution { Thread };

template <class F>
TFuture<void> Async(EAsyncExecution, F&& Function) { return TFuture<void>(std::async(std::launch::async, std::forward<F>(Function))); }
