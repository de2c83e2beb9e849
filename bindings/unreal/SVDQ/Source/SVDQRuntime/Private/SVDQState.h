// What the plug-in's objects hold of the library.

#pragma once

#include "Async/Future.h"
#include "CoreMinimal.h"
#include "SVDQLoras.h"
#include "SVDQTypes.h"

DECLARE_LOG_CATEGORY_EXTERN(LogSVDQ, Log, All);

/** A context that is made in a thread of its own: with a GPU that takes too long for a frame. */
struct FSVDQCreation
{
	svdq::Result<svdq::Context> Result = svdq::Context();
};

/** The subsystem's. */
struct FSVDQState
{
	/** Until the context is there; Done is ready when Creation may be looked at. */
	TSharedPtr<FSVDQCreation> Creation;
	TFuture<void> Done;

	svdq::Context Context;
	svdq::Job Loading;
	TSharedPtr<svdq::Model> Model;
	FSVDQLoras Loras;

	ESVDQModelState ModelState = ESVDQModelState::Unloaded;
	float Progress = 0.0f;
	ESVDQError Error = ESVDQError::None;
	FText Message;
};

/** A node's. */
struct FSVDQTask
{
	svdq::Job Job;
	uint32 Width = 0;
	uint32 Height = 0;
	uint32 PreviewSerial = 0;
	float Fraction = -1.0f;
	ESVDQPhase Phase = ESVDQPhase::LoadingModel;
	bool bCancelled = false;
};

ESVDQError SVDQErrorFrom(svdq_result Result);
