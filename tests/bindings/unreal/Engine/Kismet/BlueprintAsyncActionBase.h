#pragma once

#include "CoreMinimal.h"

class UBlueprintAsyncActionBase : public UObject
{
public:
	virtual void Activate() {}
	void SetReadyToDestroy() { bReadyToDestroy = true; }

	bool bReadyToDestroy = false;
};
