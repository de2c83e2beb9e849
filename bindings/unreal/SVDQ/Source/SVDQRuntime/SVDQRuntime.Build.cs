using UnrealBuildTool;

// Not named SVDQ: UnrealBuildTool would define SVDQ_API for it, which is svdq.h's own macro.
public class SVDQRuntime : ModuleRules
{
	public SVDQRuntime(ReadOnlyTargetRules Target) : base(Target)
	{
		PCHUsage = PCHUsageMode.UseExplicitOrSharedPCHs;
		PublicDependencyModuleNames.AddRange(new string[] { "Core", "CoreUObject", "DeveloperSettings", "Engine" });
		PrivateDependencyModuleNames.AddRange(new string[] { "Projects", "RHI", "SVDQLibrary" });

		// Headers alone, to ask the renderer for its GPU.
		PrivateIncludePathModuleNames.Add("VulkanRHI");
		AddEngineThirdPartyPrivateStaticDependencies(Target, "Vulkan");
		if (Target.Platform == UnrealTargetPlatform.Win64)
		{
			AddEngineThirdPartyPrivateStaticDependencies(Target, "DX12");
		}
	}
}
