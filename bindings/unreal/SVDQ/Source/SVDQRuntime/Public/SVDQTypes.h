// What is asked for, and what comes back.

#pragma once

#include "CoreMinimal.h"

#include "SVDQTypes.generated.h"

/** Why there is no picture, as far as a game would tell the player apart. */
UENUM(BlueprintType)
enum class ESVDQError : uint8
{
	None,
	/** The node was cancelled, or the subsystem was shut down. */
	Cancelled,
	/** A number or a text of the request is not possible. */
	InvalidRequest,
	/** The model's files are missing, damaged or of another kind. */
	ModelFiles,
	/** Memory of the GPU or the host is not to be had, or the budget is too small. */
	Memory,
	/** There is no GPU that will do, or its driver is missing or too old. */
	Device,
	/** Anything else; the message says what. */
	Internal,
};

/** What a node is doing. */
UENUM(BlueprintType)
enum class ESVDQPhase : uint8
{
	LoadingModel,
	LoadingLoras,
	Queued,
	EncodingPrompt,
	Denoising,
	Decoding,
	Finished,
};

/** Whether the subsystem has a model. */
UENUM(BlueprintType)
enum class ESVDQModelState : uint8
{
	Unloaded,
	Loading,
	Ready,
	Failed,
};

/** A LoRA, and how much of it. */
USTRUCT(BlueprintType)
struct FSVDQLora
{
	GENERATED_BODY()

	/** A .safetensors file; relative to the project's folder. It is loaded once for the model. */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ")
	FString Path;

	/** 1 is what it was trained for. */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ")
	float Strength = 1.0f;
};

/** What to generate. 0 is the model's default. */
USTRUCT(BlueprintType)
struct FSVDQRequest
{
	GENERATED_BODY()

	/** What the picture shows. */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ", meta = (MultiLine = "true"))
	FString Prompt;

	/** Pixels, a multiple of 16. */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ", meta = (ClampMin = "0"))
	int32 Width = 0;

	/** Pixels, a multiple of 16. */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ", meta = (ClampMin = "0"))
	int32 Height = 0;

	/** Denoising steps. */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ", meta = (ClampMin = "0", ClampMax = "1000"))
	int32 Steps = 0;

	/** Guidance scale, for models that take one. */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ", meta = (ClampMin = "0"))
	float Guidance = 0.0f;

	/** The same seed gives the same picture. */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ")
	int64 Seed = 0;

	/** Steps between previews; 0: none. */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ", meta = (ClampMin = "0"))
	int32 PreviewEvery = 0;

	/** LoRAs that change the picture, each file once. */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ")
	TArray<FSVDQLora> Loras;

	/**
	 * An image to start from, as "Read Render Target" has it: the picture's Width times Height, rows from the top.
	 * Empty: from noise. The project settings of SVDQ have to allow it.
	 */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ")
	TArray<FColor> InitPixels;

	/** How much of InitPixels is replaced: up to 1, which is all of it. */
	UPROPERTY(EditAnywhere, BlueprintReadWrite, Category = "SVDQ", meta = (ClampMin = "0", ClampMax = "1"))
	float InitStrength = 0.0f;
};
