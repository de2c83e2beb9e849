#pragma once

#include "CoreMinimal.h"

class IModuleInterface
{
public:
	virtual ~IModuleInterface() {}
	virtual void StartupModule() {}
	virtual void ShutdownModule() {}
};

/** The only module. */
IModuleInterface* StubModule();
#define IMPLEMENT_MODULE(Class, Name) \
	IModuleInterface* StubModule() { static Class Module; return &Module; }

struct FModuleManager
{
	template <class T>
	static T* GetModulePtr(const TCHAR*) { return static_cast<T*>(StubModule()); }
};
