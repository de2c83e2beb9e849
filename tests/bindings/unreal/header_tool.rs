//! A little of UnrealHeaderTool: X.generated.h for the stubs, and its complaints.

use std::fmt::Write;

/// Reads a header of the plug-in and makes what GENERATED_BODY becomes in it. A class gets its parent's
/// name and shows its properties to the collector.
pub(crate) fn generate(file: &str, header: &str) -> String {
    let includes = header.lines().filter_map(|line| line.strip_prefix("#include ")).collect::<Vec<_>>();
    let last = format!("\"{file}.generated.h\"");
    assert_eq!(includes.last(), Some(&last.as_str()), "{file}: has to be included last");

    let mut generated = format!("#undef CURRENT_FILE_ID\n#define CURRENT_FILE_ID FID_{file}\n");
    let mut class: Option<(String, String, usize)> = None;
    let mut references = Vec::new();
    let mut previous = "";
    for (number, line) in header.lines().enumerate() {
        let code = line.trim();
        if previous.starts_with("UCLASS(") {
            let (head, parent) = code.split_once(" : public ").expect("a UCLASS has a parent");
            let name = head.split_whitespace().last().unwrap();
            assert!(head.contains("SVDQRUNTIME_API"), "{file}: {name} is not exported");
            class = Some((name.into(), parent.into(), 0));
        }
        if previous.starts_with("USTRUCT(") || previous.starts_with("UENUM(") {
            let name = code.split_whitespace().find(|word| word.starts_with(['F', 'E'])).unwrap();
            assert!(name[1..].starts_with("SVDQ"), "{file}: {name}");
        }
        if code == "GENERATED_BODY()" {
            match &mut class {
                Some((_, _, at)) => *at = number + 1,
                None => writeln!(generated, "#define FID_{file}_{}_GENERATED_BODY", number + 1).unwrap(),
            }
        }
        if code.contains("TObjectPtr<") && code.ends_with(';') {
            assert!(previous.starts_with("UPROPERTY("), "{file}: {code} would be collected");
            references.push(code.trim_end_matches(';').rsplit(' ').next().unwrap().to_owned());
        }
        if line == "};"
            && let Some((name, parent, at)) = class.take()
        {
            assert!(at > 0, "{file}: {name} has no GENERATED_BODY");
            let visits = references.drain(..).map(|name| format!(" Visitor.Visit({name});"));
            let visits = visits.collect::<String>();
            writeln!(
                generated,
                "#define FID_{file}_{at}_GENERATED_BODY public: typedef {parent} Super; \
                 virtual void VisitReferences(FReferenceVisitor& Visitor) override \
                 {{ Super::VisitReferences(Visitor);{visits} }} private:"
            )
            .unwrap();
        }
        if !code.is_empty() {
            previous = code;
        }
    }
    generated
}
