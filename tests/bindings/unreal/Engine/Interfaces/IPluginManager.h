#pragma once

#include "CoreMinimal.h"

class IPlugin
{
public:
	FString GetBaseDir() const { return FString(TEXT("/plugins/SVDQ")); }
};

class IPluginManager
{
public:
	static IPluginManager& Get() { static IPluginManager Manager; return Manager; }
	TSharedPtr<IPlugin> FindPlugin(const TCHAR*) { return MakeShared<IPlugin>(); }
};
