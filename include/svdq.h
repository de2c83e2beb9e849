/*
 * svdq.h: 4-bit FLUX image generation in your process. C99 or later, C++11 or later.
 * Generated from src/capi by cbindgen.
 *
 * A tour. A context is a device with its threads; a model is loaded into it; pictures are made by
 * the model, into memory of the caller's. Blocking, and without the checks of results that
 * examples-c/ has:
 *
 *     svdq_context *context;
 *     svdq_context_create(NULL, &context);
 *
 *     svdq_source folder = {.struct_size = sizeof folder, .kind = SVDQ_SOURCE_PATH, .path = "models/flux"};
 *     svdq_model_params load = {.struct_size = sizeof load, .source_count = 1, .sources = &folder};
 *     svdq_model *model;
 *     svdq_model_load(context, &load, &model);
 *
 *     svdq_generate_params params = {.struct_size = sizeof params};
 *     svdq_generate_params_init(model, &params);
 *     params.prompt = "a potion";
 *     svdq_image image = {.struct_size = sizeof image, .format = SVDQ_FORMAT_RGBA8,
 *                         .width = params.width, .height = params.height};
 *     svdq_image_bytes(&image, &image.capacity);
 *     image.pixels = malloc(image.capacity);
 *     svdq_generate(model, &params, &image);
 *
 *  - In a game: svdq_job_submit and svdq_job_submit_load return at once. svdq_job_poll says every
 *    frame how far the job is, svdq_job_read_image copies its previews and its picture,
 *    svdq_job_take_model takes a loaded model. svdq_job_cancel stops it at its next step, and the
 *    model is as it was. None of these waits for the device. (async.c, frames.c)
 *  - Files in a pak: a source is also a piece of memory or a function that reads. (pak.c)
 *  - Styles: svdq_lora_load loads a LoRA for a model, and every picture names those that it uses,
 *    each with a strength. Switching costs nothing. (lora.c)
 *  - The same prompt again: svdq_prompt_encode keeps what the text encoders make of it.
 *  - From a picture: svdq_generate_params.init, with a model that was loaded for it.
 *  - Beside a game: svdq_device_get_info finds the GPU that the game draws on, by its LUID or UUID;
 *    a context takes a memory budget, which can change, and a priority. svdq_generate_check says
 *    what a picture takes before anything runs, svdq_model_inspect what files are, without a device.
 *  - At the end, or before code of the program is unloaded: svdq_context_shutdown cancels everything
 *    and waits for it. Afterwards no thread and no callback of the context runs.
 *
 * Threads. Every function may be called from any thread, and several at a time with the same handle;
 * the exception is a release, after which nobody may use that handle. Functions that make something
 * (load, encode, generate) block until it is there; pictures of one model wait for each other.
 * Callbacks run in the library's threads or in that of the call, under no lock of the library's, so
 * that they may call it.
 *
 * Linking on Linux: -lsvdq, or libsvdq.a and then
 *   -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
 * On Windows define SVDQ_STATIC for the static library.
 *
 * Rules that hold for every function:
 *  - A function that can fail returns svdq_result. It writes nothing on failure, but for a handle,
 *    which becomes NULL, and for what its comment says. svdq_last_error has the reason in words.
 *  - Arguments are checked: NULL where something has to be, numbers out of range, strings that are
 *    not UTF-8 and sizes that do not fit are SVDQ_ERR_INVALID_ARGUMENT. A pointer that is not NULL
 *    has to point to what its type says.
 *  - Strings in are UTF-8 and end in a NUL; paths too, on every platform.
 *  - Strings out go to buf, which holds cap bytes. They end in a NUL whenever cap is not 0; one that
 *    does not fit is cut between characters, and the call returns SVDQ_ERR_BUFFER_TOO_SMALL.
 *    *needed, unless needed is NULL, receives the size wanted, NUL included. buf NULL with cap 0
 *    asks for that alone.
 *  - Structs begin with struct_size, which the caller sets to sizeof, also in structs that the
 *    library fills. Zero in any other field means "the default". Later versions add fields at the
 *    end. What an older program does not have counts as zero; what a newer one has beyond this
 *    library has to be zero, or the call returns SVDQ_ERR_VERSION_MISMATCH.
 *  - What was made from a handle keeps what it needs of it: handles may be released in any order,
 *    from any thread, when no call uses them any more. Releasing NULL does nothing.
 *  - Functions and callbacks have the C calling convention of the platform, which is cdecl where
 *    there are several.
 *  - No function unwinds, exits the process or changes its state: signal handlers, locale,
 *    environment and floating-point modes stay as they are.
 */

#ifndef SVDQ_H
#define SVDQ_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && !defined(SVDQ_STATIC)
#  define SVDQ_API __declspec(dllimport)
#else
#  define SVDQ_API
#endif

/**
 * Changes when programs have to be changed.
 */
#define SVDQ_VERSION_MAJOR 0

/**
 * Changes when something is added.
 */
#define SVDQ_VERSION_MINOR 1

/**
 * Changes when something is mended.
 */
#define SVDQ_VERSION_PATCH 0

/**
 * The version of this header as one number that grows: 10203 is 1.2.3.
 */
#define SVDQ_VERSION_NUMBER (((SVDQ_VERSION_MAJOR * 10000) + (SVDQ_VERSION_MINOR * 100)) + SVDQ_VERSION_PATCH)

/**
 * The first GPU that this library can use, or the CPU if there is none; the log says why.
 */
#define SVDQ_DEVICE_BEST 0

/**
 * The GPU of number device_index, as svdq_device_get_info counts them.
 */
#define SVDQ_DEVICE_INDEX 1

/**
 * The GPU whose UUID device_id is.
 */
#define SVDQ_DEVICE_UUID 2

/**
 * The GPU whose LUID the first 8 bytes of device_id are: the one that Direct3D renders with.
 */
#define SVDQ_DEVICE_LUID 3

/**
 * The CPU.
 */
#define SVDQ_DEVICE_CPU 4

/**
 * Graphics and the program's other work on the GPU go first.
 */
#define SVDQ_PRIORITY_LOW 0

/**
 * Half-way between the lowest and the highest priority that the GPU has.
 */
#define SVDQ_PRIORITY_BALANCED 1

/**
 * Pictures go first.
 */
#define SVDQ_PRIORITY_HIGH 2

/**
 * Something failed in a thread of the library.
 */
#define SVDQ_LOG_ERROR 1

/**
 * Something is not as it was asked for: the CPU is used, a LoRA has tensors without a place.
 */
#define SVDQ_LOG_WARNING 2

/**
 * What was opened and loaded.
 */
#define SVDQ_LOG_INFO 3

/**
 * What was made.
 */
#define SVDQ_LOG_DEBUG 4

/**
 * A source is a file or a folder.
 */
#define SVDQ_SOURCE_PATH 1

/**
 * A source is a file in memory.
 */
#define SVDQ_SOURCE_MEMORY 2

/**
 * A source is a file that the library reads through a function of the program's, from a pak for instance.
 */
#define SVDQ_SOURCE_CALLBACKS 3

/**
 * Activations in 4 bits, which is what the checkpoints are made for.
 */
#define SVDQ_PROFILE_W4A4 1

/**
 * Activations in 8 bits: closer to the 16-bit model.
 */
#define SVDQ_PROFILE_W4A8 2

/**
 * Activations are not quantised.
 */
#define SVDQ_PROFILE_W4A16 3

/**
 * FLUX.1-dev and models like it, which take a guidance scale.
 */
#define SVDQ_FAMILY_FLUX1_DEV 1

/**
 * FLUX.1-schnell and models like it, which take none.
 */
#define SVDQ_FAMILY_FLUX1_SCHNELL 2

/**
 * The transformer's weights are 4-bit integers with a low-rank branch.
 */
#define SVDQ_PRECISION_INT4 1

/**
 * The transformer's weights are 4-bit floats (NVFP4) with a low-rank branch.
 */
#define SVDQ_PRECISION_NVFP4 2

/**
 * Flag of a model: it is to take pictures to start from, so that its VAE's encoder is kept too.
 */
#define SVDQ_MODEL_IMAGE_INPUT 1

/**
 * Bytes in memory: red, green, blue, 255.
 */
#define SVDQ_FORMAT_RGBA8 1

/**
 * Bytes in memory: blue, green, red, 255.
 */
#define SVDQ_FORMAT_BGRA8 2

/**
 * Bytes in memory: red, green, blue.
 */
#define SVDQ_FORMAT_RGB8 3

/**
 * The first row in memory is the bottom row of the picture.
 */
#define SVDQ_IMAGE_BOTTOM_UP 1

/**
 * The job waits for its turn.
 */
#define SVDQ_JOB_QUEUED 0

/**
 * The job runs.
 */
#define SVDQ_JOB_RUNNING 1

/**
 * The job is done: its picture or model is there.
 */
#define SVDQ_JOB_DONE 2

/**
 * The job was cancelled before it was done.
 */
#define SVDQ_JOB_CANCELLED 3

/**
 * The job failed: svdq_job_error says why.
 */
#define SVDQ_JOB_FAILED 4

/**
 * The job has not begun, or has ended.
 */
#define SVDQ_PHASE_NONE 0

/**
 * The model is loaded.
 */
#define SVDQ_PHASE_LOAD 1

/**
 * The prompt is encoded.
 */
#define SVDQ_PHASE_ENCODE 2

/**
 * The picture is denoised, step by step.
 */
#define SVDQ_PHASE_DENOISE 3

/**
 * Latents become pixels.
 */
#define SVDQ_PHASE_DECODE 4

/**
 * The finished picture.
 */
#define SVDQ_JOB_IMAGE 0

/**
 * The newest preview.
 */
#define SVDQ_JOB_PREVIEW 1

/**
 * What models are loaded into: a device and its threads. Independent of every other context.
 */
typedef struct svdq_context svdq_context;

/**
 * A picture that is made, or a model that is loaded, in a thread of the library's. A context has one
 * thread for pictures and one for loads, each of which does one job after the other.
 */
typedef struct svdq_job svdq_job;

/**
 * A LoRA that is loaded for one model.
 */
typedef struct svdq_lora svdq_lora;

/**
 * A loaded model.
 */
typedef struct svdq_model svdq_model;

/**
 * A prompt that is encoded for one model, to be used for any number of pictures. It takes a few
 * megabytes of the host's memory, and saves each picture the time of the text encoders.
 */
typedef struct svdq_prompt svdq_prompt;

/**
 * What a call came to: 0 is success, negative is an error. Numbers never change meaning.
 */
typedef int32_t svdq_result;

/**
 * A GPU that the NVIDIA driver offers.
 */
typedef struct svdq_device_info {
  /**
   * sizeof(svdq_device_info), set by the caller.
   */
  uint32_t struct_size;
  /**
   * 89 for compute capability 8.9.
   */
  uint32_t compute_capability;
  /**
   * The product's name, UTF-8, with a NUL at its end.
   */
  char name[128];
  /**
   * The same on every start, for svdq_context_params.device_id. Vulkan: deviceUUID.
   */
  uint8_t uuid[16];
  /**
   * For svdq_context_params.device_id. Direct3D: AdapterLuid. Vulkan: deviceLUID.
   */
  uint8_t luid[8];
  /**
   * 1 when there is a LUID: on Windows.
   */
  uint32_t luid_valid;
  /**
   * The newest CUDA that the driver knows: 13000 for 13.0.
   */
  uint32_t driver_version;
  /**
   * In what INT4 checkpoints can run: bit 1 << SVDQ_PROFILE_* for each profile. 0: this library has
   * no kernels for this GPU.
   */
  uint32_t int4_profiles;
  /**
   * In what NVFP4 checkpoints can run, likewise.
   */
  uint32_t nvfp4_profiles;
  /**
   * Bytes.
   */
  uint64_t memory_total;
  /**
   * Bytes that nobody uses now. 0: there is not even room to ask.
   */
  uint64_t memory_free;
} svdq_device_info;

/**
 * Receives a line of a context's log, in UTF-8 and without a line break; message is gone after the
 * call. Called in any thread that is inside the library, by several at a time, and while no lock is
 * held: it may call the library, but must not release handles. It must not throw.
 */
typedef void (*svdq_log_fn)(void *user, int32_t level, const char *message);

/**
 * Gives size bytes at a multiple of alignment, a power of two, or NULL if there are none. Called in
 * any thread, by several at a time. It must not call the library.
 */
typedef void *(*svdq_alloc_fn)(void *user, size_t size, size_t alignment);

/**
 * Takes back what svdq_alloc_fn gave, with the same size and alignment. Called as that is.
 */
typedef void (*svdq_free_fn)(void *user, void *memory, size_t size, size_t alignment);

/**
 * How a context is made. All zero but struct_size is a good choice.
 */
typedef struct svdq_context_params {
  /**
   * sizeof(svdq_context_params).
   */
  uint32_t struct_size;
  /**
   * SVDQ_VERSION_NUMBER as the program was compiled, for svdq_context_create to refuse a header
   * that this library cannot serve. 0: unchecked.
   */
  uint32_t header_version;
  /**
   * CPU threads to compute with, the caller's own included; at most 1024. 0: one a core. Pictures do
   * not depend on it.
   */
  uint32_t threads;
  /**
   * SVDQ_DEVICE_*: where models run. 0: SVDQ_DEVICE_BEST.
   */
  uint32_t device_select;
  /**
   * The number of the GPU, with SVDQ_DEVICE_INDEX.
   */
  uint32_t device_index;
  /**
   * SVDQ_PRIORITY_*: who goes first on the GPU. 0: SVDQ_PRIORITY_LOW.
   */
  uint32_t gpu_priority;
  /**
   * The UUID of the GPU, with SVDQ_DEVICE_UUID; its LUID and 8 zeros, with SVDQ_DEVICE_LUID.
   */
  uint8_t device_id[16];
  /**
   * Bytes of GPU memory that the models of this context may take; 0: what is free. A model keeps as
   * much of itself on the GPU as there is room for, and the rest in the host's memory. What the
   * driver needs for itself, some hundred megabytes, comes on top.
   */
  uint64_t memory_budget;
  /**
   * Receives the log, until the context and all that was made from it are released. NULL: the log
   * is kept for svdq_context_read_log.
   */
  svdq_log_fn log;
  /**
   * log's first argument.
   */
  void *log_user;
  /**
   * With free, gives the host's memory for all that grows with files and pictures: weights,
   * activations, pixels. NULL, both: the system's.
   */
  svdq_alloc_fn alloc;
  /**
   * With alloc.
   */
  svdq_free_fn free;
  /**
   * alloc's and free's first argument.
   */
  void *alloc_user;
} svdq_context_params;

/**
 * What the memory of a context is used for, in bytes.
 */
typedef struct svdq_memory_info {
  /**
   * sizeof(svdq_memory_info), set by the caller.
   */
  uint32_t struct_size;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * What weights and temporaries take on the GPU. What the driver needs for itself comes on top.
   * This and the next three are 0 on the CPU.
   */
  uint64_t device_used;
  /**
   * The most that they ever took at a time.
   */
  uint64_t device_peak;
  /**
   * What they may take; 0: no limit.
   */
  uint64_t device_budget;
  /**
   * What is free on the GPU; other programs take their share of it.
   */
  uint64_t device_free;
  /**
   * What weights, activations and pixels take of the host's memory, as svdq_alloc_fn gives it.
   */
  uint64_t host_used;
  /**
   * The most that they ever took at a time.
   */
  uint64_t host_peak;
} svdq_memory_info;

/**
 * Reads a part of a file for the library: copies size bytes from offset on to dst. They lie inside of the
 * file, and size is at most 16 MiB but for JSON files. All of them have to be there when it returns SVDQ_OK;
 * any other result ends the call or the job that reads with SVDQ_ERR_IO.
 *
 * It is called in the thread that loads, one call at a time, and under no lock of the library's: it may
 * call the library. It must not unwind.
 */
typedef svdq_result (*svdq_read_at_fn)(void *user, uint64_t offset, void *dst, size_t size);

/**
 * Where a model, a part of it, or a LoRA is read from.
 *
 * Files in memory and behind callbacks that have a name make up one folder together, which is read as a
 * folder of the file system would be: the folder of a diffusers pipeline for instance, by the names
 * "model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors" and so on. Without a
 * name they are .safetensors files on their own. Error texts call them by their names, or by their place
 * in the array: "source 2" is element 2 of sources.
 */
typedef struct svdq_source {
  /**
   * sizeof(svdq_source), the same in all elements of an array.
   */
  uint32_t struct_size;
  /**
   * SVDQ_SOURCE_*. It says which fields below are read.
   */
  uint32_t kind;
  /**
   * PATH: a file or folder, UTF-8 on every platform. MEMORY, CALLBACKS: the name of the file, with '/'
   * between its parts, or NULL.
   */
  const char *path;
  /**
   * MEMORY: the file, which must not change until the call returns, or the job that loads has ended.
   */
  const void *data;
  /**
   * MEMORY, CALLBACKS: bytes of the file.
   */
  uint64_t size;
  /**
   * CALLBACKS: reads the file until the call returns, or the job that loads has ended.
   */
  svdq_read_at_fn read_at;
  /**
   * CALLBACKS: first argument of read_at.
   */
  void *user;
} svdq_source;

/**
 * What to load, and how.
 */
typedef struct svdq_model_params {
  /**
   * sizeof(svdq_model_params).
   */
  uint32_t struct_size;
  /**
   * Elements of sources: 1 to 256.
   */
  uint32_t source_count;
  /**
   * The transformer, CLIP's and T5's text encoder and the VAE, in any order: .safetensors files,
   * or folders with such. Each is recognised by its tensors. The folder of a diffusers pipeline
   * (with a model_index.json) has them all, and an svdq-*.safetensors file in it goes before its
   * own transformer; a part that is there besides replaces the folder's.
   */
  const struct svdq_source *sources;
  /**
   * SVDQ_PROFILE_*. 0: what suits the device and the checkpoint. Not every GPU has every profile.
   */
  uint32_t profile;
  /**
   * SVDQ_MODEL_*, or 0.
   */
  uint32_t flags;
} svdq_model_params;

/**
 * What a model is.
 */
typedef struct svdq_model_info {
  /**
   * sizeof(svdq_model_info), set by the caller.
   */
  uint32_t struct_size;
  /**
   * SVDQ_FAMILY_*.
   */
  uint32_t family;
  /**
   * SVDQ_PRECISION_* of the transformer. 0: not quantised.
   */
  uint32_t precision;
  /**
   * Rank of the low-rank branch; 0 if not quantised.
   */
  uint32_t rank;
  /**
   * Denoising steps of a generation that asks for none.
   */
  uint32_t default_steps;
  /**
   * Guidance scale of a generation that asks for none.
   */
  float default_guidance;
  /**
   * Width and height are multiples of this many pixels.
   */
  uint32_t size_multiple;
  /**
   * Pixels, when a generation asks for none.
   */
  uint32_t default_width;
  /**
   * Pixels, when a generation asks for none.
   */
  uint32_t default_height;
  /**
   * SVDQ_PROFILE_* that is in use; 0 from svdq_model_inspect.
   */
  uint32_t profile;
  /**
   * SVDQ_MODEL_* that it was loaded with.
   */
  uint32_t flags;
  /**
   * LoRAs that a picture can have at a time.
   */
  uint32_t max_loras;
  /**
   * Bytes of all tensors of its networks, as the files have them.
   */
  uint64_t stored_bytes;
  /**
   * Bytes of weights on the GPU, with those of LoRAs; 0 from svdq_model_inspect.
   */
  uint64_t device_bytes;
  /**
   * Bytes of weights in the host's memory; 0 from svdq_model_inspect.
   */
  uint64_t host_bytes;
} svdq_model_info;

/**
 * What a LoRA brings to its model.
 */
typedef struct svdq_lora_info {
  /**
   * sizeof(svdq_lora_info), set by the caller.
   */
  uint32_t struct_size;
  /**
   * The largest rank.
   */
  uint32_t rank;
  /**
   * Modules of the file that change the model.
   */
  uint32_t modules;
  /**
   * Tensors of the file for which the model has no place; they have no effect. A LoRA that was
   * trained for this kind of model has none.
   */
  uint32_t unused_tensors;
  /**
   * Channels of a control image, as LoRAs for FLUX.1's tools (Canny, Depth) add them. No such image
   * can be given yet: zeros stand for it. 0 for other LoRAs.
   */
  uint32_t control_channels;
} svdq_lora_info;

/**
 * A LoRA that a picture is to be made with.
 */
typedef struct svdq_lora_ref {
  /**
   * sizeof(svdq_lora_ref), the same in all elements of an array.
   */
  uint32_t struct_size;
  /**
   * 1 is what the LoRA was trained for; 0 leaves it out. Negative and large values are allowed.
   */
  float strength;
  /**
   * Of the model that makes the picture. Not NULL, and not twice in an array.
   */
  const struct svdq_lora *lora;
} svdq_lora_ref;

/**
 * What to encode.
 */
typedef struct svdq_prompt_params {
  /**
   * sizeof(svdq_prompt_params).
   */
  uint32_t struct_size;
  /**
   * Elements of loras, at most 64.
   */
  uint32_t lora_count;
  /**
   * The prompt, UTF-8. Not NULL; "" is a prompt.
   */
  const char *text;
  /**
   * lora_count LoRAs, or NULL for none. Those that change text encoders take part in the encoding.
   */
  const struct svdq_lora_ref *loras;
} svdq_prompt_params;

/**
 * An image in the caller's memory.
 */
typedef struct svdq_image {
  /**
   * sizeof(svdq_image).
   */
  uint32_t struct_size;
  /**
   * SVDQ_FORMAT_*.
   */
  uint32_t format;
  /**
   * Pixels.
   */
  uint32_t width;
  /**
   * Pixels.
   */
  uint32_t height;
  /**
   * Bytes from the start of a row to the start of the next. 0: rows follow each other at once.
   */
  uint64_t row_stride;
  /**
   * SVDQ_IMAGE_*, added up.
   */
  uint32_t flags;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * Where the first row in memory starts. Bytes between rows are not written.
   */
  void *pixels;
  /**
   * Bytes at pixels that may be written; that may be read, of an image that goes in.
   */
  uint64_t capacity;
} svdq_image;

/**
 * What to generate.
 */
typedef struct svdq_generate_params {
  /**
   * sizeof(svdq_generate_params).
   */
  uint32_t struct_size;
  /**
   * Pixels, a multiple of the model's size_multiple. 0: the model's default.
   */
  uint32_t width;
  /**
   * Pixels, a multiple of the model's size_multiple. 0: the model's default.
   */
  uint32_t height;
  /**
   * Denoising steps, at most 1000. 0: the model's default.
   */
  uint32_t steps;
  /**
   * Guidance scale, for models that take one. 0: the model's default.
   */
  float guidance;
  /**
   * Elements of loras, at most 64.
   */
  uint32_t lora_count;
  /**
   * The same seed gives the same picture. It is the seed of torch.Generator("cpu") in diffusers.
   */
  uint64_t seed;
  /**
   * What the picture shows, UTF-8; "" is a prompt. NULL with encoded.
   */
  const char *prompt;
  /**
   * What the picture shows, encoded by the same model. NULL with prompt.
   */
  const struct svdq_prompt *encoded;
  /**
   * lora_count LoRAs to use, or NULL for none. Their order has no meaning. Those that change text
   * encoders change the encoding of prompt; encoded stays what it is.
   */
  const struct svdq_lora_ref *loras;
  /**
   * An image to start from, of the picture's size, for a model loaded with SVDQ_MODEL_IMAGE_INPUT.
   * NULL: the picture starts from noise alone.
   */
  const struct svdq_image *init;
  /**
   * How much of init is replaced, up to 1, which is all of it: the strength of diffusers'
   * FluxImg2ImgPipeline, which runs this part of the steps. 0: the default, 0.6.
   */
  float init_strength;
  /**
   * Steps from one preview to the next. 0: no previews. Only jobs have them; they do not change the
   * picture.
   */
  uint32_t preview_every;
} svdq_generate_params;

/**
 * What a picture takes beside the model.
 */
typedef struct svdq_generate_cost {
  /**
   * sizeof(svdq_generate_cost), set by the caller.
   */
  uint32_t struct_size;
  /**
   * 1 when the GPU's free memory and the memory budget suffice now; 0 when not. 1 on the CPU.
   */
  uint32_t fits;
  /**
   * Bytes of temporaries on the GPU at the peak, exactly; 0 on the CPU. Temporaries of the last
   * picture are used again.
   */
  uint64_t device_bytes;
  /**
   * Bytes of temporaries in the host's memory at the peak, exactly: what the allocator hook is asked
   * for.
   */
  uint64_t host_bytes;
  /**
   * Bytes of the picture as SVDQ_FORMAT_RGBA8 without gaps.
   */
  uint64_t image_bytes;
} svdq_generate_cost;

/**
 * How far a job is.
 */
typedef struct svdq_job_status {
  /**
   * sizeof(svdq_job_status), set by the caller.
   */
  uint32_t struct_size;
  /**
   * SVDQ_JOB_QUEUED to SVDQ_JOB_FAILED. The last three are the end: nothing changes afterwards.
   */
  uint32_t state;
  /**
   * SVDQ_PHASE_*.
   */
  uint32_t phase;
  /**
   * Denoising steps that are done.
   */
  uint32_t step;
  /**
   * Denoising steps that are run: with svdq_generate_params.init fewer than were asked for. 0: the job
   * loads a model.
   */
  uint32_t steps;
  /**
   * 0 to 1, never less than before. 1 only when the job is done.
   */
  float fraction;
  /**
   * SVDQ_PENDING until the job has ended; then what it came to.
   */
  svdq_result result;
  /**
   * Grows with every new preview. 0: there is none yet.
   */
  uint32_t preview_serial;
  /**
   * Pixels of a preview. 0: there is none yet.
   */
  uint32_t preview_width;
  /**
   * Pixels of a preview. 0: there is none yet.
   */
  uint32_t preview_height;
  /**
   * Milliseconds before the job's turn came. This and the following are written when their phase
   * ends.
   */
  double queue_ms;
  /**
   * Milliseconds in SVDQ_PHASE_LOAD.
   */
  double load_ms;
  /**
   * Milliseconds in SVDQ_PHASE_ENCODE.
   */
  double encode_ms;
  /**
   * Milliseconds in SVDQ_PHASE_DENOISE.
   */
  double denoise_ms;
  /**
   * Milliseconds in SVDQ_PHASE_DECODE.
   */
  double decode_ms;
  /**
   * The picture's seed.
   */
  uint64_t seed;
} svdq_job_status;

/**
 * The call did what it says.
 */
#define SVDQ_OK 0

/**
 * Not there yet: a job still runs. Not an error.
 */
#define SVDQ_PENDING 1

/**
 * A pointer is NULL, a number is out of range, a string is not UTF-8.
 */
#define SVDQ_ERR_INVALID_ARGUMENT -1

/**
 * The caller's buffer is too small; the error text says what is needed.
 */
#define SVDQ_ERR_BUFFER_TOO_SMALL -2

/**
 * The call or the job was cancelled.
 */
#define SVDQ_ERR_CANCELLED -3

/**
 * The job has not come to its end: wait for it first.
 */
#define SVDQ_ERR_BUSY -4

/**
 * The context was shut down.
 */
#define SVDQ_ERR_SHUTTING_DOWN -5

/**
 * The input is sound, but asks for something that this library does not do.
 */
#define SVDQ_ERR_UNSUPPORTED -6

/**
 * The program was compiled with a header that this library does not know.
 */
#define SVDQ_ERR_VERSION_MISMATCH -7

/**
 * The system refused to read a file.
 */
#define SVDQ_ERR_IO -20

/**
 * A file or folder does not exist.
 */
#define SVDQ_ERR_NOT_FOUND -21

/**
 * A file is damaged, or is not what its format requires.
 */
#define SVDQ_ERR_BAD_FORMAT -22

/**
 * A file is sound, but belongs to another model.
 */
#define SVDQ_ERR_WRONG_MODEL -23

/**
 * Memory for an image or a model of this size is not to be had.
 */
#define SVDQ_ERR_OUT_OF_HOST_MEMORY -40

/**
 * GPU memory is not to be had; the handles stay usable.
 */
#define SVDQ_ERR_OUT_OF_DEVICE_MEMORY -41

/**
 * The context's memory budget is too small; the handles stay usable.
 */
#define SVDQ_ERR_MEMORY_BUDGET -42

/**
 * There is no NVIDIA driver that could be used.
 */
#define SVDQ_ERR_NO_DRIVER -60

/**
 * The NVIDIA driver is too old; the error text says which one is needed.
 */
#define SVDQ_ERR_DRIVER_TOO_OLD -61

/**
 * There is no such GPU.
 */
#define SVDQ_ERR_NO_DEVICE -62

/**
 * The GPU lacks something that is needed.
 */
#define SVDQ_ERR_DEVICE_UNSUPPORTED -63

/**
 * The GPU failed for good: release the context and what was made from it.
 */
#define SVDQ_ERR_DEVICE_LOST -64

/**
 * A bug in the library. The process is sound and the handles may be used and released.
 */
#define SVDQ_ERR_INTERNAL -99

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library that is running, to be compared with SVDQ_VERSION_NUMBER.
 *
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API uint32_t svdq_version_number(void);

/**
 * The version of the library that is running, as "0.1.0". The string is static.
 *
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API const char *svdq_version_string(void);

/**
 * Writes one line for bug reports about how the library was built: version, platform, GPU architectures.
 *
 * buf, cap, needed: as for every string out, see the top of this file.
 *
 * Errors: SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_build_info(char *buf, size_t cap, size_t *needed);

/**
 * The name of a result as it stands in this header, for logs. Never NULL: a number that is no
 * result has the name "SVDQ_ERR_UNKNOWN". The string is static.
 *
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API const char *svdq_result_name(svdq_result result);

/**
 * Writes what went wrong in the last call that failed in this thread, in one line of English that
 * names the file, tensor, shape or value at fault. Empty when no call has failed in this thread.
 * Calls that succeed leave it as it is, and so does this one.
 *
 * buf, cap, needed: as for every string out, see the top of this file.
 *
 * Errors: SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any; every thread has a text of its own.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_last_error(char *buf, size_t cap, size_t *needed);

/**
 * Says how many GPUs the NVIDIA driver offers to this process. Computing on the CPU needs none.
 *
 * count: receives the number; 0 on failure.
 *
 * Errors: SVDQ_ERR_NO_DRIVER, SVDQ_ERR_DRIVER_TOO_OLD, SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_device_count(uint32_t *count);

/**
 * Describes a GPU. Blocks: the driver has to be asked for the free memory in a CUDA context, which
 * takes some hundred milliseconds where this process has none on this GPU. None stays.
 *
 * index: below svdq_device_count's number, in the driver's order.
 * info: its struct_size must be set. Not written on failure.
 *
 * Errors: SVDQ_ERR_NO_DEVICE, SVDQ_ERR_NO_DRIVER, SVDQ_ERR_DRIVER_TOO_OLD,
 * SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_device_get_info(uint32_t index, struct svdq_device_info *info);

/**
 * Fills params with the defaults, which are zeros.
 *
 * params: its struct_size must be set.
 *
 * Errors: SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_context_params_init(struct svdq_context_params *params);

/**
 * Makes a context.
 *
 * params: how, or NULL for the defaults.
 * out: receives the context, or NULL on failure. Release it with svdq_context_release.
 *
 * Errors: SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. For a GPU: SVDQ_ERR_NO_DRIVER,
 * SVDQ_ERR_DRIVER_TOO_OLD, SVDQ_ERR_NO_DEVICE, SVDQ_ERR_DEVICE_UNSUPPORTED,
 * SVDQ_ERR_OUT_OF_DEVICE_MEMORY.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_context_create(const struct svdq_context_params *params, struct svdq_context **out);

/**
 * Changes how much GPU memory the models of a context may take. Later loads and pictures keep to
 * it. What is there beyond it is given back if it can be made again, which the next picture does: at
 * once, or when the picture is done that uses it. Does nothing on the CPU.
 *
 * bytes: as svdq_context_params.memory_budget.
 *
 * Errors: SVDQ_ERR_MEMORY_BUDGET when the weights on the GPU take more, which the error text says in
 * bytes: the budget stays what it was. SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_context_set_memory_budget(struct svdq_context *context, uint64_t bytes);

/**
 * Says what the memory of a context is used for.
 *
 * info: its struct_size must be set. Not written on failure.
 *
 * Errors: SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API
svdq_result svdq_context_get_memory(const struct svdq_context *context,
                                    struct svdq_memory_info *info);

/**
 * Takes the oldest line of the log, for programs that would rather ask than be called. The last 256
 * lines are kept; a line says how many made room for them.
 *
 * level: receives its SVDQ_LOG_*; 0, and an empty text, when there is none, as where
 * svdq_context_params.log receives the lines.
 * buf, cap, needed: as for every string out, see the top of this file. A line that does not fit
 * stays, and so does one of which only the size is asked for.
 *
 * Errors: SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API
svdq_result svdq_context_read_log(struct svdq_context *context,
                                  int32_t *level,
                                  char *buf,
                                  size_t cap,
                                  size_t *needed);

/**
 * Ends everything that a context does: cancels all jobs and all blocking calls, refuses new ones with
 * SVDQ_ERR_SHUTTING_DOWN, and waits until none runs. After success no thread and no callback of this
 * context runs any more, so that the program may unload the library or end. Handles are to be released
 * as ever, before or after. A second call finds nothing to do.
 *
 * timeout_ms: milliseconds to wait at most. 0: not at all. UINT32_MAX: without end.
 *
 * Returns SVDQ_PENDING if something still runs after timeout_ms: call it again.
 *
 * Errors: SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any, and several at a time; not from a callback of this context.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_context_shutdown(struct svdq_context *context, uint32_t timeout_ms);

/**
 * Releases a context. Its models stay usable, and its jobs go on. NULL is allowed.
 *
 * Threads: any, once no other call uses this handle.
 * Since 0.1.
 */
SVDQ_API void svdq_context_release(struct svdq_context *context);

/**
 * Loads a model. Blocks until it can generate.
 *
 * context: may be released before the model is.
 * params: what to load. Nothing of it, and no file, is needed after the call.
 * out: receives the model, or NULL on failure. Release it with svdq_model_release.
 *
 * Errors: SVDQ_ERR_NOT_FOUND, SVDQ_ERR_IO, SVDQ_ERR_BAD_FORMAT, SVDQ_ERR_WRONG_MODEL,
 * SVDQ_ERR_UNSUPPORTED, SVDQ_ERR_OUT_OF_HOST_MEMORY, SVDQ_ERR_OUT_OF_DEVICE_MEMORY,
 * SVDQ_ERR_MEMORY_BUDGET, SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. After
 * svdq_context_shutdown SVDQ_ERR_SHUTTING_DOWN, or SVDQ_ERR_CANCELLED if it ran already.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API
svdq_result svdq_model_load(struct svdq_context *context,
                            const struct svdq_model_params *params,
                            struct svdq_model **out);

/**
 * Says what a model is, from the headers and configs of its files alone: no device is opened, and no weights
 * are read.
 *
 * params: as for svdq_model_load. Its profile has no meaning here.
 * info: its struct_size must be set. Not written on failure.
 *
 * Errors: those of svdq_model_load about files.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_model_inspect(const struct svdq_model_params *params, struct svdq_model_info *info);

/**
 * Says what a loaded model is.
 *
 * info: its struct_size must be set. Not written on failure.
 *
 * Errors: SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_model_get_info(const struct svdq_model *model, struct svdq_model_info *info);

/**
 * Releases a model and the memory of its weights. NULL is allowed.
 *
 * Threads: any, once no other call uses this handle.
 * Since 0.1.
 */
SVDQ_API void svdq_model_release(struct svdq_model *model);

/**
 * Loads a LoRA for a model. Nothing changes until a svdq_generate_params names it. Blocks; the model
 * may be in use meanwhile.
 *
 * model: may be released before the LoRA is.
 * source: a .safetensors file, its name of no importance, in the naming of diffusers, PEFT, kohya's scripts, ComfyUI, Black
 * Forest Labs or XLabs, for the transformer and the text encoders. Nothing of it is needed after the
 * call.
 * out: receives the LoRA, or NULL on failure. Release it with svdq_lora_release.
 *
 * Errors: SVDQ_ERR_WRONG_MODEL for a LoRA of another model, SVDQ_ERR_UNSUPPORTED for LoKr, LoHa and
 * DoRA, SVDQ_ERR_NOT_FOUND, SVDQ_ERR_IO, SVDQ_ERR_BAD_FORMAT, SVDQ_ERR_OUT_OF_HOST_MEMORY,
 * SVDQ_ERR_OUT_OF_DEVICE_MEMORY, SVDQ_ERR_MEMORY_BUDGET, SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_VERSION_MISMATCH,
 * SVDQ_ERR_INVALID_ARGUMENT. After svdq_context_shutdown SVDQ_ERR_SHUTTING_DOWN, or SVDQ_ERR_CANCELLED if
 * it ran already.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API
svdq_result svdq_lora_load(struct svdq_model *model,
                           const struct svdq_source *source,
                           struct svdq_lora **out);

/**
 * Says what a LoRA brings to its model.
 *
 * info: its struct_size must be set. Not written on failure.
 *
 * Errors: SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_lora_get_info(const struct svdq_lora *lora, struct svdq_lora_info *info);

/**
 * Releases a LoRA and the memory of its weights. NULL is allowed.
 *
 * Threads: any, once no other call uses this handle.
 * Since 0.1.
 */
SVDQ_API void svdq_lora_release(struct svdq_lora *lora);

/**
 * Encodes a prompt. Blocks until it is done. A picture of it is the same, byte for byte, as one of the
 * text with the same LoRAs.
 *
 * model: may be released before the prompt is.
 * params: what to encode. Nothing of it is needed after the call.
 * out: receives the prompt, or NULL on failure. Release it with svdq_prompt_release.
 *
 * Errors: SVDQ_ERR_OUT_OF_HOST_MEMORY, SVDQ_ERR_OUT_OF_DEVICE_MEMORY, SVDQ_ERR_MEMORY_BUDGET,
 * SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_SHUTTING_DOWN, SVDQ_ERR_CANCELLED by svdq_context_shutdown,
 * SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any; takes turns with the pictures of its model.
 * Since 0.1.
 */
SVDQ_API
svdq_result svdq_prompt_encode(struct svdq_model *model,
                               const struct svdq_prompt_params *params,
                               struct svdq_prompt **out);

/**
 * Releases a prompt. Jobs that use it go on. NULL is allowed.
 *
 * Threads: any, once no other call uses this handle.
 * Since 0.1.
 */
SVDQ_API void svdq_prompt_release(struct svdq_prompt *prompt);

/**
 * The smallest capacity that holds an image: from its first byte to the last byte of its last row.
 *
 * image: pixels and capacity are not looked at.
 * bytes: receives the capacity. Not written on failure.
 *
 * Errors: SVDQ_ERR_INVALID_ARGUMENT, SVDQ_ERR_VERSION_MISMATCH.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_image_bytes(const struct svdq_image *image, uint64_t *bytes);

/**
 * Fills params with the model's defaults, seed 0, no prompt and no LoRAs.
 *
 * params: its struct_size must be set. Not written on failure.
 *
 * Errors: SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API
svdq_result svdq_generate_params_init(const struct svdq_model *model,
                                      struct svdq_generate_params *params);

/**
 * Makes a picture. Blocks until it is done. The same parameters on the same kind of processor give
 * the same bytes, whatever the number of threads.
 *
 * params: what to generate. Nothing of it is needed after the call.
 * out: where to. Its width and height have to be those of the picture. Its pixels are not written on
 * failure.
 *
 * Errors: SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_OUT_OF_HOST_MEMORY, SVDQ_ERR_OUT_OF_DEVICE_MEMORY (before
 * anything ran), SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. After
 * svdq_context_shutdown SVDQ_ERR_SHUTTING_DOWN, or SVDQ_ERR_CANCELLED if it ran already.
 * Threads: any; calls and jobs of the same model take turns, in the order in which they came.
 * Since 0.1.
 */
SVDQ_API
svdq_result svdq_generate(struct svdq_model *model,
                          const struct svdq_generate_params *params,
                          const struct svdq_image *out);

/**
 * Says what a picture would take, without making it. Takes no memory that counts, and a few
 * milliseconds: not for every frame.
 *
 * params: as for svdq_generate. Whether the model has the prompt's encoding already (it keeps that of
 * its last picture) makes a difference.
 * cost: its struct_size must be set. Not written on failure.
 *
 * Errors: SVDQ_ERR_DEVICE_LOST, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. A picture that does
 * not fit is none.
 * Threads: any; does not wait for pictures.
 * Since 0.1.
 */
SVDQ_API
svdq_result svdq_generate_check(const struct svdq_model *model,
                                const struct svdq_generate_params *params,
                                struct svdq_generate_cost *cost);

/**
 * Makes a picture in the background. Returns at once; the picture is the one that svdq_generate would
 * make. Jobs of a context run one after the other, and take turns with svdq_generate at their model.
 *
 * model: may be released before the job ends.
 * params: what to generate. Nothing of it is needed after the call: strings, LoRA handles and pixels
 * are copied.
 * out: receives the job, or NULL on failure. Release it with svdq_job_release.
 *
 * Errors: SVDQ_ERR_SHUTTING_DOWN, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. Others that
 * svdq_generate has are the job's result.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API
svdq_result svdq_job_submit(struct svdq_model *model,
                            const struct svdq_generate_params *params,
                            struct svdq_job **out);

/**
 * Loads a model in the background. Returns at once; svdq_job_take_model has the model when the job is
 * done. Pictures are made meanwhile.
 *
 * context: may be released before the job ends.
 * params: what to load. Nothing of it is needed after the call, but the memory and the callbacks that
 * its sources point to, which have to stay until the job has ended.
 * out: receives the job, or NULL on failure. Release it with svdq_job_release.
 *
 * Errors: SVDQ_ERR_SHUTTING_DOWN, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT. Others that
 * svdq_model_load has are the job's result.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API
svdq_result svdq_job_submit_load(struct svdq_context *context,
                                 const struct svdq_model_params *params,
                                 struct svdq_job **out);

/**
 * Says how far a job is. Never waits: call it every frame.
 *
 * status: its struct_size must be set. Not written on failure.
 *
 * Errors: SVDQ_ERR_INVALID_ARGUMENT. A job that failed is none: see svdq_job_status.result.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_job_poll(const struct svdq_job *job, struct svdq_job_status *status);

/**
 * Waits until a job has ended.
 *
 * timeout_ms: milliseconds to wait at most. 0: not at all. UINT32_MAX: without end.
 *
 * Returns the job's result, and SVDQ_PENDING if it still runs after timeout_ms.
 *
 * Errors: those of the job, SVDQ_ERR_CANCELLED, SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any, and several at a time.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_job_wait(const struct svdq_job *job, uint32_t timeout_ms);

/**
 * Asks a job to stop. Does not wait: a job whose turn has not come has ended when this returns, one
 * that runs ends within a step. Either ends as SVDQ_JOB_CANCELLED. Success also if it had ended before,
 * which changes nothing. The model stays as it was and may be used at once.
 *
 * Errors: SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any, at any time.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_job_cancel(struct svdq_job *job);

/**
 * Writes why a job failed, in one line of English. Empty unless it failed or was cancelled.
 *
 * buf, cap, needed: as for every string out, see the top of this file.
 *
 * Errors: SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_job_error(const struct svdq_job *job, char *buf, size_t cap, size_t *needed);

/**
 * Copies a picture out of a job, any number of times.
 *
 * which: SVDQ_JOB_IMAGE for the finished picture, whose size out has to have. SVDQ_JOB_PREVIEW for the
 * newest preview, whose size svdq_job_status has, a pixel for 8 x 8 of the picture's; it stays when
 * the job has ended.
 * out: where to. Its pixels are not written on failure.
 *
 * Errors: SVDQ_ERR_BUSY until the picture is done, or while there is no preview yet. Those of the job,
 * if it failed. SVDQ_ERR_BUFFER_TOO_SMALL, SVDQ_ERR_VERSION_MISMATCH, SVDQ_ERR_INVALID_ARGUMENT.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API
svdq_result svdq_job_read_image(const struct svdq_job *job,
                                uint32_t which,
                                const struct svdq_image *out);

/**
 * Takes the model that a job has loaded. A job gives it once.
 *
 * out: receives the model, or NULL on failure. Release it with svdq_model_release.
 *
 * Errors: SVDQ_ERR_BUSY until the job has ended; its own, if it failed. SVDQ_ERR_INVALID_ARGUMENT, also
 * when the model was taken before.
 * Threads: any.
 * Since 0.1.
 */
SVDQ_API svdq_result svdq_job_take_model(struct svdq_job *job, struct svdq_model **out);

/**
 * Releases a job, with its picture, or its model unless that was taken. Cancels a job that has not
 * ended; does not wait for it. NULL is allowed.
 *
 * Threads: any, once no other call uses this handle.
 * Since 0.1.
 */
SVDQ_API void svdq_job_release(struct svdq_job *job);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SVDQ_H */
