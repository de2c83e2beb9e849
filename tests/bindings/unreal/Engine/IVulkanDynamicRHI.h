#pragma once

#include "DynamicRHI.h"

struct IVulkanDynamicRHI : public FDynamicRHI
{
	virtual const uint8* RHIGetVulkanDeviceUUID() const = 0;
};

inline IVulkanDynamicRHI* GetIVulkanDynamicRHI()
{
	check(GDynamicRHI->GetInterfaceType() == ERHIInterfaceType::Vulkan);
	return static_cast<IVulkanDynamicRHI*>(GDynamicRHI);
}
