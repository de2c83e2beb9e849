#include "SVDQModule.h"

#include "HAL/PlatformProcess.h"
#include "Interfaces/IPluginManager.h"
#include "Misc/Paths.h"
#include "SVDQState.h"

DEFINE_LOG_CATEGORY(LogSVDQ);

IMPLEMENT_MODULE(FSVDQRuntimeModule, SVDQRuntime)

void FSVDQRuntimeModule::StartupModule()
{
#if PLATFORM_WINDOWS
	// Beside the plug-in's own binary in the editor, beside the game's in a packaged one.
	if (const TSharedPtr<IPlugin> Plugin = IPluginManager::Get().FindPlugin(TEXT("SVDQ")))
	{
		const FString Path = FPaths::Combine(Plugin->GetBaseDir(), TEXT("Binaries/Win64/svdq.dll"));
		Library = FPlatformProcess::GetDllHandle(*Path);
	}
	if (!Library)
	{
		Library = FPlatformProcess::GetDllHandle(TEXT("svdq.dll"));
	}
	if (!Library)
	{
		UE_LOG(LogSVDQ, Error, TEXT("svdq.dll was not found"));
	}
#endif
}

bool FSVDQRuntimeModule::IsLibraryLoaded()
{
#if PLATFORM_WINDOWS
	const FSVDQRuntimeModule* Module = FModuleManager::GetModulePtr<FSVDQRuntimeModule>(TEXT("SVDQRuntime"));
	return Module && Module->Library;
#else
	return true; // linked
#endif
}
