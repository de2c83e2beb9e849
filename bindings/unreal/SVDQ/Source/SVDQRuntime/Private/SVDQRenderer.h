#pragma once

#include "CoreMinimal.h"

THIRD_PARTY_INCLUDES_START
#include "svdq.hpp"
THIRD_PARTY_INCLUDES_END

/** Chooses the GPU that the engine draws with. False where it does not draw with Direct3D 12 or Vulkan. */
bool SVDQUseRenderer(svdq::ContextParams& Params);
