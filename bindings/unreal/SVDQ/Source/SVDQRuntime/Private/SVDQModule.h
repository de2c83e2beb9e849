#pragma once

#include "Modules/ModuleManager.h"

class FSVDQRuntimeModule : public IModuleInterface
{
public:
	virtual void StartupModule() override;

	/** False where svdq.dll was not found: then nothing of the library may be called. */
	static bool IsLibraryLoaded();

private:
	/** Kept until the process ends, as its threads may. */
	void* Library = nullptr;
};
