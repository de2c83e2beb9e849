#pragma once

#include "CoreMinimal.h"

enum class ERHIInterfaceType { Hidden, Null, D3D11, D3D12, Vulkan, Metal, Agx, OpenGL };

/** The renderer. */
class FDynamicRHI
{
public:
	virtual ~FDynamicRHI() {}
	virtual ERHIInterfaceType GetInterfaceType() const = 0;
	virtual void* RHIGetNativeDevice() = 0;
};

/** Null where nothing is drawn. */
extern FDynamicRHI* GDynamicRHI;
