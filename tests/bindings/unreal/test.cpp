// Runs the plug-in as an engine would: frames on the game thread, nodes, worlds that end, collections.
// test MODEL_FOLDER; on the stubs' Windows: test, where the library is missing.

#include "Containers/Ticker.h"
#include "Engine/Engine.h"
#include "Engine/Texture2D.h"
#include "Modules/ModuleManager.h"
#include "SVDQGenerateImage.h"
#include "SVDQSettings.h"
#include "SVDQSubsystem.h"

#include "svdq.hpp"

#include <chrono>
#include <cstdio>
#include <thread>

#undef check
#define CHECK(condition)                                                            \
	do                                                                              \
	{                                                                               \
		if (!(condition))                                                           \
		{                                                                           \
			std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);    \
			std::exit(EXIT_FAILURE);                                                \
		}                                                                           \
	} while (false)

namespace
{
	/** Ticks frames until something is so. */
	template <class F>
	void FramesUntil(const F& Condition)
	{
		const auto Start = std::chrono::steady_clock::now();
		while (!Condition())
		{
			CHECK(std::chrono::steady_clock::now() - Start < std::chrono::seconds(120));
			FTSTicker::GetCoreTicker().Tick(0.001f);
			std::this_thread::sleep_for(std::chrono::milliseconds(1));
		}
	}

	void Frames(int32 Count)
	{
		FramesUntil([&Count]() { return Count-- == 0; });
	}

	/** What a node's events said. */
	struct FHeard
	{
		int32 Progress = 0;
		int32 Previews = 0;
		int32 Completed = 0;
		int32 Failed = 0;
		float Fraction = 0.0f;
		bool bLoading = false;
		UTexture2D* Image = nullptr;
		ESVDQError Error = ESVDQError::None;
		std::string Message;

		void Listen(USVDQGenerateImage* Node)
		{
			Node->OnProgress.Add([this](UTexture2D* Preview, float Now, ESVDQPhase Phase, ESVDQError, FText)
			{
				CHECK(Completed == 0 && Failed == 0);
				++Progress;
				if (Phase == ESVDQPhase::LoadingModel)
				{
					bLoading = true;
					return;
				}
				CHECK(Now >= Fraction && Now <= 1.0f);
				Fraction = Now;
				if (Preview)
				{
					CHECK(Preview->SizeX > 0 && Preview->SizeX < 128 && Preview->Updates == 1);
					++Previews;
				}
			});
			Node->OnCompleted.Add([this](UTexture2D* Made, float, ESVDQPhase, ESVDQError, FText)
			{
				++Completed;
				Image = Made;
			});
			Node->OnFailed.Add([this](UTexture2D* Made, float, ESVDQPhase, ESVDQError Why, FText Text)
			{
				++Failed;
				CHECK(!Made);
				Error = Why;
				Message = StubUtf8(*Text.ToString());
			});
		}
		bool Finished() const { return Completed + Failed > 0; }
	};

	USVDQSubsystem& Subsystem() { return *GEngine->GetEngineSubsystem<USVDQSubsystem>(); }

	FSVDQRequest Request(int32 Steps)
	{
		FSVDQRequest Made;
		Made.Prompt = FString(TEXT("pixel art blue potion, \u00e9toile"));
		Made.Steps = Steps;
		Made.Seed = 7;
		return Made;
	}

	USVDQGenerateImage* Run(UWorld* World, const FSVDQRequest& What, FHeard& Heard)
	{
		USVDQGenerateImage* Node = USVDQGenerateImage::GenerateImage(World, What);
		Heard.Listen(Node);
		Node->Activate();
		return Node;
	}

	FHeard RunToTheEnd(UWorld* World, const FSVDQRequest& What)
	{
		FHeard Heard;
		USVDQGenerateImage* Node = Run(World, What, Heard);
		FramesUntil([&Heard]() { return Heard.Finished(); });
		CHECK(Node->bReadyToDestroy);
		return Heard;
	}

	/** The picture of Request(2), made without the plug-in. */
	std::vector<uint8> Expected(const char* Model)
	{
		svdq::Context Context = svdq::Context::create(svdq::ContextParams().use_cpu()).value();
		svdq::GenerateParams Params(StubUtf8(*Request(2).Prompt));
		Params.steps = 2;
		Params.seed = 7;
		std::vector<uint8> Pixels(128 * 128 * 4);
		Context.load(Model).value().generate(Params, svdq::Image::of(Pixels, 128, 128, SVDQ_FORMAT_BGRA8)).value();
		return Pixels;
	}

	bool Logged(const char* Text)
	{
		for (const std::string& Line : StubLog())
		{
			if (Line.find(Text) != std::string::npos)
			{
				return true;
			}
		}
		return false;
	}

	void NoModel(UWorld* World)
	{
		FHeard Heard = RunToTheEnd(World, Request(2));
		CHECK(Heard.Failed == 1 && Heard.Error == ESVDQError::ModelFiles && Heard.Message.find("name no model") != std::string::npos);

		GetMutableDefault<USVDQSettings>()->ModelPath = FString(TEXT("missing/mod\u00e8le"));
		Heard = RunToTheEnd(World, Request(2));
		CHECK(Heard.Failed == 1 && Heard.Error == ESVDQError::ModelFiles);
		CHECK(Heard.Message.find("/project/missing/mod\xc3\xa8le") != std::string::npos);
		CHECK(Subsystem().GetModelState() == ESVDQModelState::Failed);
		CHECK(StubUtf8(*Subsystem().GetModelError().ToString()) == Heard.Message);
		CHECK(Logged("LogSVDQ Error: /project/missing/"));
	}

	void Picture(UWorld* World, const std::vector<uint8>& Pixels)
	{
		FSVDQRequest What = Request(2);
		What.PreviewEvery = 1;
		FHeard Heard;
		Run(World, What, Heard);
		CHECK(Subsystem().GetModelState() == ESVDQModelState::Loading);
		while (!Heard.Finished())
		{
			Frames(1);
			GEngine->CollectGarbage(); // the subsystem holds the node, and the node its texture
		}
		CHECK(Heard.Completed == 1 && Heard.Failed == 0 && Heard.bLoading && Heard.Progress > 1);
		CHECK(Subsystem().GetModelState() == ESVDQModelState::Ready && Subsystem().GetLoadProgress() == 1.0f);

		Heard = RunToTheEnd(World, What);
		CHECK(Heard.Completed == 1 && !Heard.bLoading);
		CHECK(Heard.Image->SizeX == 128 && Heard.Image->SizeY == 128 && Heard.Image->SRGB && Heard.Image->Updates == 1);
		CHECK(Heard.Image->GetPlatformData()->Mips[0].BulkData.Bytes == Pixels);

		// the node has finished: nothing holds it
		GEngine->CollectGarbage();
		CHECK(!StubObjects().count(Heard.Image));
	}

	void Previews(UWorld* World)
	{
		FSVDQRequest What = Request(60);
		What.PreviewEvery = 1;
		const FHeard Heard = RunToTheEnd(World, What);
		CHECK(Heard.Completed == 1 && Heard.Previews > 2);
	}

	void Cancelled(UWorld* World)
	{
		FHeard Heard;
		USVDQGenerateImage* Node = Run(World, Request(1000), Heard);
		FramesUntil([&Heard]() { return Heard.Fraction > 0.0f; });
		Node->Cancel();
		CHECK(!Heard.Finished()); // events come with frames
		FramesUntil([&Heard]() { return Heard.Finished(); });
		Node->Cancel();
		Frames(5);
		CHECK(Heard.Failed == 1 && Heard.Completed == 0 && Heard.Error == ESVDQError::Cancelled && !Heard.Message.empty());

		// before it began, and from within an event
		FHeard Early;
		Run(World, Request(1000), Early)->Cancel();
		FHeard Inside;
		USVDQGenerateImage* Second = Run(World, Request(1000), Inside);
		Second->OnProgress.Add([Second](UTexture2D*, float, ESVDQPhase, ESVDQError, FText) { Second->Cancel(); });
		FramesUntil([&]() { return Early.Finished() && Inside.Finished(); });
		CHECK(Early.Error == ESVDQError::Cancelled && Inside.Error == ESVDQError::Cancelled);
	}

	void Impossible(UWorld* World)
	{
		FSVDQRequest What = Request(2);
		What.Width = 100;
		FHeard Heard = RunToTheEnd(World, What);
		CHECK(Heard.Failed == 1 && Heard.Error == ESVDQError::InvalidRequest && Heard.Message.find("100") != std::string::npos);
		What.Width = -16;
		Heard = RunToTheEnd(World, What);
		CHECK(Heard.Failed == 1 && Heard.Error == ESVDQError::InvalidRequest);
	}

	void WorldEnds(UWorld* World, const std::vector<uint8>& Pixels)
	{
		UWorld* Other = NewObject<UWorld>();
		Other->AddToRoot();
		FHeard Ending;
		FHeard Staying;
		FHeard Chained;
		USVDQGenerateImage* Node = Run(Other, Request(1000), Ending);
		FramesUntil([&Ending]() { return Ending.Fraction > 0.0f; });
		USVDQGenerateImage* Next = Run(World, Request(2), Staying);
		Next->OnCompleted.Add([World, &Chained](UTexture2D*, float, ESVDQPhase, ESVDQError, FText) { Run(World, Request(2), Chained); });

		FWorldDelegates::OnWorldCleanup.Broadcast(Other, true, true);
		Other->RemoveFromRoot();
		GEngine->CollectGarbage();
		CHECK(!StubObjects().count(Node) && StubObjects().count(Next));
		FramesUntil([&Chained]() { return Chained.Finished(); });
		CHECK(!Ending.Finished() && Staying.Completed == 1 && Chained.Completed == 1);
		CHECK(Chained.Image->GetPlatformData()->Mips[0].BulkData.Bytes == Pixels);

		// a world that ends in an event of its own node
		UWorld* Short = NewObject<UWorld>();
		FHeard Heard;
		Run(Short, Request(1000), Heard)->OnProgress.Add([Short](UTexture2D*, float, ESVDQPhase, ESVDQError, FText)
		{
			FWorldDelegates::OnWorldCleanup.Broadcast(Short, true, true);
		});
		FramesUntil([&Heard]() { return Heard.Progress > 0; });
		Frames(5);
		CHECK(!Heard.Finished() && Heard.Progress == 1);
	}

	void Unloaded(UWorld* World, const std::vector<uint8>& Pixels)
	{
		FHeard Heard;
		Run(World, Request(100), Heard);
		FramesUntil([&Heard]() { return Heard.Fraction > 0.0f; });
		Subsystem().UnloadModel();
		CHECK(Subsystem().GetModelState() == ESVDQModelState::Unloaded);
		FramesUntil([&Heard]() { return Heard.Finished(); });
		CHECK(Heard.Completed == 1);

		FHeard Waiting;
		Run(World, Request(2), Waiting);
		Subsystem().UnloadModel();
		FramesUntil([&Waiting]() { return Waiting.Finished(); });
		CHECK(Waiting.Error == ESVDQError::Cancelled);

		CHECK(Subsystem().SetMemoryBudget(0));
		const FHeard Again = RunToTheEnd(World, Request(2));
		CHECK(Again.bLoading && Again.Image->GetPlatformData()->Mips[0].BulkData.Bytes == Pixels);
	}

	/** The engine ends while a node runs, while one waits for the model, and while the context is being made. */
	void EngineEnds(UWorld* World)
	{
		FHeard Running;
		Run(World, Request(1000), Running);
		FramesUntil([&Running]() { return Running.Fraction > 0.0f; });
		GEngine->Stop();
		Frames(5);
		CHECK(!Running.Finished() && !FWorldDelegates::OnWorldCleanup.IsBound());
		FHeard Late;
		Run(World, Request(2), Late);
		CHECK(Late.Failed == 1 && Late.Error == ESVDQError::Cancelled);

		for (int32 Ticks = 0; Ticks < 6; ++Ticks)
		{
			GEngine->Start<USVDQSubsystem>();
			FHeard Waiting;
			Run(World, Request(2), Waiting);
			Frames(Ticks);
			GEngine->Stop();
			CHECK(Waiting.Failed == 0);
		}
		GEngine->Start<USVDQSubsystem>();
		CHECK(RunToTheEnd(World, Request(2)).Completed == 1);
		GEngine->Stop();
		CHECK(!Logged("still runs"));
	}

	void MissingLibrary(UWorld* World)
	{
		GetMutableDefault<USVDQSettings>()->ModelPath = FString(TEXT("model"));
		const FHeard Heard = RunToTheEnd(World, Request(2));
		CHECK(Heard.Failed == 1 && Heard.Error == ESVDQError::Internal && Heard.Message == "svdq.dll was not found");
		CHECK(Logged("LogSVDQ Error: svdq.dll was not found"));
		GEngine->Stop();
	}

	void Everything(UWorld* World, const char* Model)
	{
		const std::vector<uint8> Pixels = Expected(Model);
		NoModel(World);
		GetMutableDefault<USVDQSettings>()->ModelPath = FString(UTF8_TO_TCHAR(Model));
		Picture(World, Pixels);
		Previews(World);
		Cancelled(World);
		Impossible(World);
		WorldEnds(World, Pixels);
		Unloaded(World, Pixels);
		EngineEnds(World);
	}
}

int main(int Count, char** Arguments)
{
	CHECK(Count == (PLATFORM_WINDOWS ? 1 : 2));
	GEngine = new UEngine();
	StubModule()->StartupModule();
	UWorld* World = NewObject<UWorld>();
	World->AddToRoot();
	USVDQSettings* Settings = GetMutableDefault<USVDQSettings>();
	CHECK(Settings->GpuPriority == ESVDQPriority::Low);
	Settings->Device = ESVDQDevice::Cpu;
	GEngine->Start<USVDQSubsystem>();
	if (PLATFORM_WINDOWS)
	{
		MissingLibrary(World);
	}
	else
	{
		Everything(World, Arguments[1]);
	}
	World->RemoveFromRoot();
	Settings->RemoveFromRoot();
	GEngine->CollectGarbage();
	CHECK(StubObjects().empty());
	delete GEngine;
	return EXIT_SUCCESS;
}
