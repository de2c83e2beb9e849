#include "SVDQRenderer.h"

#include "DynamicRHI.h"
#include "HAL/UnrealMemory.h"
#include "IVulkanDynamicRHI.h"

#if PLATFORM_WINDOWS
#include "Windows/AllowWindowsPlatformTypes.h"
THIRD_PARTY_INCLUDES_START
#include <d3d12.h>
THIRD_PARTY_INCLUDES_END
#include "Windows/HideWindowsPlatformTypes.h"
#endif

bool SVDQUseRenderer(svdq::ContextParams& Params)
{
	if (!GDynamicRHI)
	{
		return false;
	}
	const ERHIInterfaceType Renderer = GDynamicRHI->GetInterfaceType();
	if (Renderer == ERHIInterfaceType::Vulkan)
	{
		Params.device_select = SVDQ_DEVICE_UUID;
		FMemory::Memcpy(Params.device_id, GetIVulkanDynamicRHI()->RHIGetVulkanDeviceUUID(), sizeof(Params.device_id));
		return true;
	}
#if PLATFORM_WINDOWS
	if (Renderer == ERHIInterfaceType::D3D12)
	{
		const LUID Luid = static_cast<ID3D12Device*>(GDynamicRHI->RHIGetNativeDevice())->GetAdapterLuid();
		Params.use_luid(&Luid);
		return true;
	}
#endif
	return false;
}
