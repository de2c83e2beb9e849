// The Blueprint node "Generate Image (SVDQ)".

#pragma once

#include "CoreMinimal.h"
#include "Kismet/BlueprintAsyncActionBase.h"
#include "SVDQTypes.h"

#include "SVDQGenerateImage.generated.h"

class UTexture2D;
class UWorld;
struct FSVDQState;
struct FSVDQTask;

/**
 * Image: the picture when completed; a small preview while in progress, where previews were asked for; else null.
 * Progress: 0 to 1 of the phase LoadingModel, and then 0 to 1 of the picture.
 */
DECLARE_DYNAMIC_MULTICAST_DELEGATE_FiveParams(FSVDQImageEvent, UTexture2D*, Image, float, Progress, ESVDQPhase, Phase, ESVDQError, Error, FText, Message);

UCLASS()
class SVDQRUNTIME_API USVDQGenerateImage : public UBlueprintAsyncActionBase
{
	GENERATED_BODY()

public:
	/** Something went on. On the game thread, as all events. */
	UPROPERTY(BlueprintAssignable)
	FSVDQImageEvent OnProgress;

	/** The last event: Image has the picture. */
	UPROPERTY(BlueprintAssignable)
	FSVDQImageEvent OnCompleted;

	/** The last event: there is no picture. */
	UPROPERTY(BlueprintAssignable)
	FSVDQImageEvent OnFailed;

	/**
	 * Makes a picture in the background; the model of the project settings is loaded if it is not there yet.
	 * When the world of WorldContextObject ends, so does the node, without an event.
	 */
	UFUNCTION(BlueprintCallable, Category = "SVDQ", meta = (BlueprintInternalUseOnly = "true", WorldContext = "WorldContextObject", DisplayName = "Generate Image (SVDQ)"))
	static USVDQGenerateImage* GenerateImage(UObject* WorldContextObject, const FSVDQRequest& Request);

	/** Stops it; OnFailed follows with the error Cancelled. Nothing happens to a node that has finished. */
	UFUNCTION(BlueprintCallable, Category = "SVDQ")
	void Cancel();

	virtual void Activate() override;

	/** The subsystem's part: moves on, and says whether it goes on after this. */
	bool Advance(FSVDQState& State);

	/** The subsystem's part: stops without an event. */
	void Abandon();

	bool BelongsTo(const UWorld* Other) const;

private:
	bool Submit(FSVDQState& State);
	bool Complete();
	bool Fail(ESVDQError Error, const FText& Message);
	void ReportProgress(UTexture2D* Preview, float Fraction, ESVDQPhase Phase);

	UPROPERTY(Transient)
	TObjectPtr<UTexture2D> Texture;

	FSVDQRequest What;
	TWeakObjectPtr<UWorld> World;

	/** From Activate until it has finished. */
	TSharedPtr<FSVDQTask> Task;
};
