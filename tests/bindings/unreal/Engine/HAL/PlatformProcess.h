#pragma once

#include "CoreMinimal.h"

struct FPlatformProcess
{
	/** On the "Windows" of these tests a library is found when the test says so: it is linked anyway. */
	static void* GetDllHandle(const TCHAR*) { static char Library; return bStubLibraryFound ? &Library : nullptr; }
	inline static bool bStubLibraryFound = false;
};
