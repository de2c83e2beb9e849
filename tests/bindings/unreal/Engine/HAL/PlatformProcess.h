#pragma once

#include "CoreMinimal.h"

struct FPlatformProcess
{
	/** On the "Windows" of these tests no library is ever found. */
	static void* GetDllHandle(const TCHAR*) { return nullptr; }
};
