#pragma once

#include "CoreMinimal.h"

class UWorld : public UObject
{
public:
	virtual UWorld* GetWorld() const override { return const_cast<UWorld*>(this); }
};

struct FWorldDelegates
{
	static TStubEvent<UWorld*, bool, bool> OnWorldCleanup;
};
