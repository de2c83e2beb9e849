// The plug-in's page in the project settings.

#pragma once

#include "CoreMinimal.h"
#include "Engine/DeveloperSettings.h"

#include "SVDQSettings.generated.h"

/** How GPU work of models goes before that of the game. */
UENUM()
enum class ESVDQPriority : uint8
{
	/** Yields to graphics. */
	Low,
	Balanced,
	High,
};

/** Where models run. */
UENUM()
enum class ESVDQDevice : uint8
{
	/** The first GPU that will do, or else the CPU. */
	Best,
	Cpu,
	/** The GPU that the game is drawn with: a model fails to load where that will not do. Direct3D 12 and Vulkan. */
	Renderer,
};

UCLASS(Config = Game, DefaultConfig, meta = (DisplayName = "SVDQ Image Generation"))
class SVDQRUNTIME_API USVDQSettings : public UDeveloperSettings
{
	GENERATED_BODY()

public:
	/**
	 * A pipeline's folder or a .safetensors file; relative to the project's folder. It is read as it lies on the
	 * disk, so packaged games list it under "Additional Non-Asset Directories To Copy".
	 */
	UPROPERTY(Config, EditAnywhere, Category = "Model")
	FString ModelPath;

	/** Whether pictures may start from an image, for which the model takes a little more memory. */
	UPROPERTY(Config, EditAnywhere, Category = "Model")
	bool bStartFromImages = false;

	/** MiB of GPU memory that the model may take; 0: what is free. The rest of it stays in the host's memory. */
	UPROPERTY(Config, EditAnywhere, Category = "Model", meta = (ClampMin = "0"))
	int32 MemoryBudgetMiB = 0;

	/** How GPU work goes before that of the game. */
	UPROPERTY(Config, EditAnywhere, Category = "Device")
	ESVDQPriority GpuPriority = ESVDQPriority::Low;

	UPROPERTY(Config, EditAnywhere, Category = "Device")
	ESVDQDevice Device = ESVDQDevice::Best;

	/** CPU threads to compute with, when it is the CPU; 0: one a core. */
	UPROPERTY(Config, EditAnywhere, Category = "Device", meta = (ClampMin = "0", ClampMax = "1024"))
	int32 Threads = 0;

	virtual FName GetCategoryName() const override { return FName(TEXT("Plugins")); }
};
