#pragma once

#include "CoreMinimal.h"

struct FMemory
{
	static void* Memcpy(void* Dest, const void* Src, std::size_t Count) { return std::memcpy(Dest, Src, Count); }
};
