#pragma once

#include "CoreMinimal.h"

class FSubsystemCollectionBase
{
};

class UEngineSubsystem : public UObject
{
public:
	virtual void Initialize(FSubsystemCollectionBase&) {}
	virtual void Deinitialize() {}
};
