// Runs the plug-in as an engine would: frames on the game thread, nodes, worlds that end, collections.
// test MODEL_FOLDER. On the stubs' Windows the library is missing at first.

#include "Async/Async.h"
#include "Containers/Ticker.h"
#include "Engine/Engine.h"
#include "Engine/Texture2D.h"
#include "HAL/PlatformProcess.h"
#include "IVulkanDynamicRHI.h"
#include "Modules/ModuleManager.h"
#include "SVDQGenerateImage.h"
#include "SVDQSettings.h"
#include "SVDQSubsystem.h"

#include "svdq.hpp"

#if PLATFORM_WINDOWS
#include <d3d12.h>
#endif

#include <chrono>
#include <cstdio>
#include <thread>

#include <dlfcn.h>
#include <unistd.h>

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

/** With what the newest context was to be made. */
static svdq_context_params Asked;

/** Stands before the library's, which computes on the CPU whatever was asked for. */
extern "C" svdq_result svdq_context_create(const svdq_context_params* Params, svdq_context** Out)
{
	const auto Create = reinterpret_cast<decltype(&svdq_context_create)>(dlsym(RTLD_NEXT, "svdq_context_create"));
	Asked = *Params;
	svdq_context_params OnCpu = *Params;
	OnCpu.device_select = SVDQ_DEVICE_CPU;
	std::memset(OnCpu.device_id, 0, sizeof OnCpu.device_id);
	return Create(&OnCpu, Out);
}

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
		bool bLoadingLoras = false;
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
				bLoadingLoras |= Phase == ESVDQPhase::LoadingLoras;
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
		const std::vector<uint8>& Bytes() const { return Image->GetPlatformData()->Mips[0].BulkData.Bytes; }
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

	FString LoraOf(const char* Model) { return FString(UTF8_TO_TCHAR((std::string(Model) + "/lora/pocket-green.safetensors").c_str())); }

	/** The picture of Request(2) with a LoRA and from an image of half strength, made without the plug-in. */
	std::vector<uint8> Expected(const char* Model, float Strength = 0.0f, const TArray<FColor>& Init = TArray<FColor>())
	{
		svdq::ModelParams What(Model);
		What.flags = SVDQ_MODEL_IMAGE_INPUT;
		const svdq::Model Loaded = svdq::Context::create().value().load(What).value();
		const svdq::Lora Lora = Loaded.load_lora(StubUtf8(*LoraOf(Model))).value();
		svdq::GenerateParams Params(StubUtf8(*Request(2).Prompt));
		Params.steps = 2;
		Params.seed = 7;
		if (Strength != 0.0f)
		{
			Params.loras.add(Lora, Strength);
		}
		if (Init.Num() > 0)
		{
			Params.start_from(svdq::Image::readable(Init.GetData(), 128 * 128 * 4, 128, 128, SVDQ_FORMAT_BGRA8), 0.5f);
		}
		std::vector<uint8> Pixels(128 * 128 * 4);
		Loaded.generate(Params, svdq::Image::of(Pixels, 128, 128, SVDQ_FORMAT_BGRA8)).value();
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
		CHECK(Heard.Bytes() == Pixels);

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

	void Loras(UWorld* World, const char* Model)
	{
		const std::vector<uint8> Pixels = Expected(Model, 0.5f);
		CHECK(Pixels != Expected(Model));
		FSVDQRequest What = Request(2);
		What.Loras.Add(FSVDQLora());
		What.Loras[0].Path = LoraOf(Model);
		What.Loras[0].Strength = 0.5f;
		FHeard Heard = RunToTheEnd(World, What);
		CHECK(Heard.Completed == 1 && Heard.bLoadingLoras && Heard.Bytes() == Pixels);
		Heard = RunToTheEnd(World, What);
		CHECK(Heard.Completed == 1 && !Heard.bLoadingLoras && Heard.Bytes() == Pixels);
		What.Loras[0].Strength = 1.0f;
		CHECK(RunToTheEnd(World, What).Bytes() == Expected(Model, 1.0f));
		Subsystem().UnloadLoras();
		CHECK(RunToTheEnd(World, What).bLoadingLoras);
		Subsystem().UnloadModel();
		Heard = RunToTheEnd(World, What);
		CHECK(Heard.Completed == 1 && Heard.bLoadingLoras);

		// one of two is missing, until it comes
		const std::string Late = std::string(Model) + ".safetensors";
		What.Loras.Add(FSVDQLora());
		What.Loras[1].Path = FString(UTF8_TO_TCHAR(Late.c_str()));
		Heard = RunToTheEnd(World, What);
		CHECK(Heard.Failed == 1 && Heard.Error == ESVDQError::ModelFiles && Heard.Message.find(Late) != std::string::npos);
		CHECK(symlink(StubUtf8(*What.Loras[0].Path).c_str(), Late.c_str()) == 0);
		CHECK(RunToTheEnd(World, What).Completed == 1);

		// the same twice
		What.Loras[1].Path = What.Loras[0].Path;
		CHECK(RunToTheEnd(World, What).Error == ESVDQError::InvalidRequest);
		// relative to the project
		What.Loras[1].Path = FString(TEXT("missing.safetensors"));
		CHECK(RunToTheEnd(World, What).Message.find("/project/missing.safetensors") != std::string::npos);
	}

	/** The LoRAs are dropped, or more, in the event that says that they are being loaded. */
	template <class F>
	FHeard WhileLorasLoad(UWorld* World, const char* Model, const F& Function)
	{
		Subsystem().UnloadLoras();
		FSVDQRequest What = Request(2);
		What.Loras.Add(FSVDQLora());
		What.Loras[0].Path = LoraOf(Model);
		FHeard Heard;
		bool bDone = false;
		Run(World, What, Heard)->OnProgress.Add([&](UTexture2D*, float, ESVDQPhase Phase, ESVDQError, FText)
		{
			if (Phase == ESVDQPhase::LoadingLoras)
			{
				Function();
				bDone = true;
			}
		});
		FramesUntil([&]() { return Heard.Finished() || (bDone && !GEngine->GetEngineSubsystem<USVDQSubsystem>()); });
		CHECK(bDone);
		return Heard;
	}

	void DroppedLoras(UWorld* World, const char* Model)
	{
		FHeard Heard = WhileLorasLoad(World, Model, []() { Subsystem().UnloadLoras(); });
		CHECK(Heard.Completed == 1 && Heard.Bytes() == Expected(Model, 1.0f));
		Heard = WhileLorasLoad(World, Model, []() { Subsystem().UnloadModel(); });
		CHECK(Heard.Failed == 1 && Heard.Error == ESVDQError::Cancelled);
	}

	void FromAnImage(UWorld* World, const char* Model)
	{
		FSVDQRequest What = Request(2);
		What.InitStrength = 0.5f;
		for (int32 Index = 0; Index < 128 * 128; ++Index)
		{
			What.InitPixels.Add(FColor{static_cast<uint8>(Index), static_cast<uint8>(Index / 128), 90, 0});
		}
		FHeard Heard = RunToTheEnd(World, What);
		CHECK(Heard.Failed == 1 && Heard.Error == ESVDQError::InvalidRequest);

		GetMutableDefault<USVDQSettings>()->bStartFromImages = true;
		Subsystem().UnloadModel();
		Heard = RunToTheEnd(World, What);
		CHECK(Heard.Completed == 1 && Heard.Bytes() == Expected(Model, 0.0f, What.InitPixels));
		What.InitPixels.RemoveAt(0);
		Heard = RunToTheEnd(World, What);
		CHECK(Heard.Failed == 1 && Heard.Error == ESVDQError::InvalidRequest && Heard.Message.find("InitPixels") != std::string::npos);
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
		CHECK(Chained.Bytes() == Pixels);

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
		CHECK(Again.bLoading && Again.Bytes() == Pixels);
	}

	/** The engine ends while a node runs, while one waits for the model or a LoRA, and while the context is being made. */
	void EngineEnds(UWorld* World, const char* Model)
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
			CHECK(Waiting.Failed == 0 && StubBusyThreads == 0);
		}
		GEngine->Start<USVDQSubsystem>();
		CHECK(!WhileLorasLoad(World, Model, []() { GEngine->Stop(); }).Finished());
		CHECK(StubBusyThreads == 0);
		GEngine->Start<USVDQSubsystem>();
		CHECK(RunToTheEnd(World, Request(2)).Completed == 1);
		GEngine->Stop();
		CHECK(!Logged("still runs"));
	}

	struct FVulkan final : public IVulkanDynamicRHI
	{
		virtual ERHIInterfaceType GetInterfaceType() const override { return ERHIInterfaceType::Vulkan; }
		virtual void* RHIGetNativeDevice() override { return nullptr; }
		virtual const uint8* RHIGetVulkanDeviceUUID() const override { return reinterpret_cast<const uint8*>("0123456789abcdef"); }
	};

	struct FOpenGl final : public FDynamicRHI
	{
		virtual ERHIInterfaceType GetInterfaceType() const override { return ERHIInterfaceType::OpenGL; }
		virtual void* RHIGetNativeDevice() override { return nullptr; }
	};

#if PLATFORM_WINDOWS
	struct FDirect3d final : public FDynamicRHI, public ID3D12Device
	{
		virtual ERHIInterfaceType GetInterfaceType() const override { return ERHIInterfaceType::D3D12; }
		virtual void* RHIGetNativeDevice() override { return static_cast<ID3D12Device*>(this); }
		virtual LUID GetAdapterLuid() override { return {0x33323130, 0x37363534}; }
	};
#endif

	/** A context is made while the engine draws with this. */
	void MakeContext(UWorld* World, FDynamicRHI* Renderer)
	{
		GDynamicRHI = Renderer;
		GetMutableDefault<USVDQSettings>()->Device = ESVDQDevice::Renderer;
		GEngine->Start<USVDQSubsystem>();
		CHECK(RunToTheEnd(World, Request(1)).Completed == 1);
		GEngine->Stop();
		GDynamicRHI = nullptr;
	}

	void TheRenderersGpu(UWorld* World)
	{
		FVulkan Vulkan;
		MakeContext(World, &Vulkan);
		CHECK(Asked.device_select == SVDQ_DEVICE_UUID && std::memcmp(Asked.device_id, "0123456789abcdef", 16) == 0);
#if PLATFORM_WINDOWS
		FDirect3d Direct3d;
		MakeContext(World, &Direct3d);
		CHECK(Asked.device_select == SVDQ_DEVICE_LUID && std::memcmp(Asked.device_id, "01234567\0\0\0\0\0\0\0\0", 16) == 0);
#endif
		CHECK(!Logged("the renderer is not"));
		FOpenGl OpenGl;
		for (FDynamicRHI* Renderer : {static_cast<FDynamicRHI*>(&OpenGl), static_cast<FDynamicRHI*>(nullptr)})
		{
			StubLog().clear();
			MakeContext(World, Renderer);
			CHECK(Asked.device_select == SVDQ_DEVICE_BEST && Logged("LogSVDQ Warning: the renderer is not"));
		}
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
		Loras(World, Model);
		DroppedLoras(World, Model);
		FromAnImage(World, Model);
		WorldEnds(World, Pixels);
		Unloaded(World, Pixels);
		EngineEnds(World, Model);
		TheRenderersGpu(World);
	}
}

int main(int Count, char** Arguments)
{
	CHECK(Count == 2);
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
		FPlatformProcess::bStubLibraryFound = true;
		StubModule()->StartupModule();
		Settings->ModelPath = FString(UTF8_TO_TCHAR(Arguments[1]));
		TheRenderersGpu(World);
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
