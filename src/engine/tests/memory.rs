use super::*;
use crate::memory::tests::Ledger;
use crate::weights::names::tests::file;
use crate::weights::testing::TempDir;

fn open(ledger: &'static Ledger, threads: usize) -> Context {
    let memory = ledger.memory();
    let options = ContextOptions { device: DeviceSelect::Cpu, threads, memory, ..Default::default() };
    Context::new(options).unwrap()
}

fn lora(model: &Model, folder: &TempDir) -> Result<Lora> {
    Lora::load(model, folder.write("style.safetensors", &file(&loras::lora())))
}

/// Lets the first allocation of `attempt` fail, then the second, until none is left. Every failure has to be said and to
/// leave nothing behind; `check` looks at what is still there. Also returns what each failure was said to be for.
fn fail_each<T>(ledger: &Ledger, attempt: impl Fn() -> Result<T>, check: impl Fn()) -> (T, Vec<String>) {
    let mut failures = Vec::new();
    for n in 1.. {
        let before = {
            let mut books = ledger.books();
            books.fail = books.calls + n;
            books.used
        };
        let result = attempt();
        ledger.books().fail = 0;
        match result {
            Ok(value) => return (value, failures),
            Err(Error::OutOfHostMemory { what, bytes }) => {
                assert!(!what.is_empty() && bytes > 0);
                failures.push(what);
            }
            Err(error) => panic!("allocation {n}: {error}"),
        }
        assert_eq!(ledger.books().used, before, "allocation {n} has left something behind");
        check();
    }
    unreachable!("there is always one more number")
}

#[test]
fn every_allocation_may_fail() {
    let (ledger, folder) = (Ledger::leaked(), TempDir::new());
    let context = open(ledger, 2);
    let (model, loading) = fail_each(ledger, || Model::random(&context, &sizes(), None), || ());
    let (lora, attaching) = fail_each(ledger, || lora(&model, &folder), || ());
    let loras = [(lora, 1.0)];
    let plain = small_picture(&model, "a", &[]).unwrap();
    let check = || assert!(small_picture(&model, "a", &[]).unwrap() == plain, "the picture has changed");
    // Another prompt, so that it is encoded every time.
    let (with_lora, drawing) = fail_each(ledger, || small_picture(&model, "b", &loras), check);
    assert!(with_lora != plain);
    let counts = [&loading, &attaching, &drawing].map(Vec::len);
    assert!(counts[0] > 100 && counts[1] > 2 && counts[2] > 200, "{counts:?} allocations");
    // What is only there while a file is read takes its memory from the same place.
    for what in ["decoded weights", "an unpacked low-rank branch", "a table of positions"] {
        assert!(loading.iter().any(|failure| failure == what), "{what}: {loading:?}");
    }
    assert!(attaching.iter().any(|failure| failure == "decoded weights"), "{attaching:?}");

    assert!(ledger.books().used > 0);
    drop((loras, model, context));
    let books = ledger.books();
    assert_eq!((books.used, books.wrong), (0, 0));
}

#[test]
fn memory_comes_back() {
    let (ledger, folder) = (Ledger::leaked(), TempDir::new());
    let context = open(ledger, 2);
    let mut loaded = None;
    for round in 0..50 {
        let options = ModelOptions { sources: vec![demo().into()], ..Default::default() };
        let model = Model::load(&context, &options).unwrap();
        assert_eq!(ledger.books().used, model.host_bytes());
        let lora = lora(&model, &folder).unwrap();
        let used = ledger.books().used;
        assert_eq!((*loaded.get_or_insert(used), context.memory.used()), (used, used), "round {round}");
        if round % 10 == 0 {
            small_picture(&model, "a", &[(lora.clone(), 0.5)]).unwrap();
        }
        drop((model, lora));
        assert_eq!(ledger.books().used, 0, "round {round}");
    }
    assert_eq!(ledger.books().wrong, 0);
}

/// What a picture takes at the most, counted by whoever gives the memory, is what was said before.
#[test]
fn the_peak_of_a_picture_is_known_before() {
    let folder = TempDir::new();
    for threads in [1, 3] {
        let ledger = Ledger::leaked();
        let context = open(ledger, threads);
        let model = Model::random(&context, &sizes(), None).unwrap();
        let lora = lora(&model, &folder).unwrap();
        let mut costs = Vec::new();
        for (width, height) in [(32, 16), (96, 64), (32, 16)] {
            for loras in [&[][..], &[(lora.clone(), 0.5)]] {
                // The last prompt is known, and costs less.
                let prompt = &format!("{}", costs.len());
                let params = GenerateParams { prompt, width, height, steps: 2, loras, ..Default::default() };
                let first = peak(ledger, &model, &params);
                let again = peak(ledger, &model, &params);
                assert!(again <= first, "{again} and {first}");
                costs.push(first);
            }
        }
        assert!(costs[0] < costs[2] && costs[..2] == costs[4..], "{costs:?}");
    }
}

/// Likewise of one that starts from another, and of a known prompt.
#[test]
fn the_peak_of_a_picture_from_a_picture_is_known_before() {
    let ledger = Ledger::leaked();
    let context = open(ledger, 2);
    let options = ModelOptions { sources: vec![demo().into()], image_input: true, ..Default::default() };
    let model = Model::load(&context, &options).unwrap();
    let pixels = vec![90; 64 * 32 * 4];
    let init = Some(ImageRef::new(&pixels, PixelFormat::Bgra8, 64, 32, 0, true).unwrap());
    let prompt = &Prompt::encode(&model, "a key", &[]).unwrap();
    for encoded in [None, Some(prompt)] {
        let params = GenerateParams { encoded, init, width: 64, height: 32, steps: 3, ..Default::default() };
        let with = peak(ledger, &model, &params);
        let without = peak(ledger, &model, &GenerateParams { init: None, ..params });
        assert!(with > without, "{with} and {without}");
    }
}

/// Previews need a decoded image before the first step, but only where a step is followed by one.
#[test]
fn previews_that_never_come_cost_nothing() {
    let options = ModelOptions { sources: vec![demo().into()], ..Default::default() };
    let model = Model::load(&open(Ledger::leaked(), 1), &options).unwrap();
    let cost = |preview_every| {
        let params = GenerateParams { width: 32, height: 16, steps: 2, preview_every, ..Default::default() };
        model.check(&params).unwrap().host_bytes
    };
    assert_eq!([cost(3), cost(u32::MAX)], [cost(0); 2]);
    assert!(cost(2) > 2 * cost(0), "{} and {}", cost(2), cost(0));
}

/// The bytes that making a picture took at the peak, which have to be those that it was said to take.
fn peak(ledger: &Ledger, model: &Model, params: &GenerateParams<'_>) -> u64 {
    let calls = ledger.books().calls;
    let cost = model.check(params).unwrap();
    let before = {
        let mut books = ledger.books();
        assert_eq!(books.calls, calls, "memory was taken to find out how much is needed");
        books.peak = books.used;
        books.used
    };
    let mut pixels = vec![0; (params.width * params.height * 3) as usize];
    let (width, height) = (params.width, params.height);
    let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, width, height, 0, false).unwrap();
    model.generate(params, &mut image, &mut |_| ControlFlow::Continue(())).unwrap();
    let peak = ledger.books().peak - before;
    assert_eq!(cost, GenerateCost { host_bytes: peak, device_bytes: 0, fits: true }, "{width} x {height}");
    peak
}

fn small_picture(model: &Model, prompt: &str, loras: &[(Lora, f32)]) -> Result<Vec<u8>> {
    let mut pixels = vec![0; 32 * 16 * 3];
    let mut image = ImageMut::new(&mut pixels, PixelFormat::Rgb8, 32, 16, 0, false)?;
    let params = GenerateParams { prompt, width: 32, height: 16, steps: 2, loras, ..Default::default() };
    model.generate(&params, &mut image, &mut |_| ControlFlow::Continue(()))?;
    Ok(pixels)
}
