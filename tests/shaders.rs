//! Every file in `shaders/`, without a GPU: valid WGSL as it stands, of one form, launched with the constants it declares, and
//! translated to every backend's language.

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::examples::{Example, examples};
use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Expression, Literal, Module, ScalarKind, ShaderStage, StorageAccess, TypeInner};
use shadernet::ops::{LEAST_SPREAD, Launch, SPREAD};

/// The kernels by stem, with their text.
fn files() -> BTreeMap<String, String> {
    let files = std::fs::read_dir(common::in_repository("shaders")).unwrap().map(|entry| entry.unwrap().path());
    let wgsl = files.filter(|path| path.extension().is_some_and(|extension| extension == "wgsl"));
    wgsl.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap())).collect()
}

/// Parses and validates with nothing but what every adapter has, f16 or cooperative matrices where the kernel's name says that it is
/// for that, and subgroups where it has the constant that says how many invocations share loads.
fn validate(stem: &str, source: &str) -> (Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(source).unwrap_or_else(|e| panic!("{stem}.wgsl: {}", e.emit_to_string(source)));
    let mut capabilities = Capabilities::IMMEDIATES;
    capabilities.set(Capabilities::SHADER_FLOAT16, stem.contains("_f16_") || is_cooperative(stem));
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, is_cooperative(stem));
    capabilities.set(Capabilities::SUBGROUP, overridden(&module, SPREAD));
    let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module);
    let info = info.unwrap_or_else(|e| panic!("{stem}.wgsl: {}", e.emit_to_string(source)));
    (module, info)
}

/// Whether a kernel multiplies by cooperative matrices.
fn is_cooperative(name: &str) -> bool {
    name.contains("_cooperative")
}

/// Every example with each of its launches, the portable one first.
fn launches() -> impl Iterator<Item = (Example, Launch)> {
    examples().into_iter().flat_map(|example| {
        let rules = example.op.rules();
        let output = rules.infer(&example.types).unwrap();
        let variants = rules.variants(&example.types, output).into_iter().map(|variant| variant.launch);
        let all: Vec<Launch> = std::iter::once(rules.launch(&example.types, output)).chain(variants).collect();
        all.into_iter().map(move |launch| (example.clone(), launch))
    })
}

/// A module's `const` numbers by name.
fn constants(module: &Module) -> HashMap<String, u32> {
    let number = |handle| match module.global_expressions[handle] {
        Expression::Literal(Literal::U32(value)) => Some(value),
        _ => None,
    };
    module.constants.iter().filter_map(|(_, constant)| Some((constant.name.clone()?, number(constant.init)?))).collect()
}

/// Whether the module has an `override` of this name.
fn overridden(module: &Module, name: &str) -> bool {
    module.overrides.iter().any(|(_, constant)| constant.name.as_deref() == Some(name))
}

/// Names and types of a structure's members; nothing for other types.
fn members(module: &Module, ty: naga::Handle<naga::Type>) -> Vec<(String, TypeInner)> {
    let TypeInner::Struct { members, .. } = &module.types[ty].inner else { return Vec::new() };
    members.iter().map(|member| (member.name.clone().unwrap_or_default(), module.types[member.ty].inner.clone())).collect()
}

#[test]
fn every_shader_is_valid_and_has_the_form_of_the_house() {
    for (stem, source) in files() {
        let (module, _) = validate(&stem, &source);
        assert!(source.starts_with(&format!("// {stem}: ")), "{stem}.wgsl: the first line names the kernel and says what it computes");
        let twin = source.split_once("CPU twin").and_then(|(_, rest)| rest.split_whitespace().find(|word| word.starts_with("src/")));
        let twin = twin.unwrap_or_else(|| panic!("{stem}.wgsl: the header says where the CPU twin is")).trim_end_matches(['.', ',']);
        assert!(common::in_repository(twin).is_file(), "{stem}.wgsl: the CPU twin is said to be in {twin}, which is not there");
        assert!(source.contains("Dispatch: "), "{stem}.wgsl: the header says how it is dispatched");
        assert!(source.lines().all(|line| line.chars().count() <= 140), "{stem}.wgsl: a line is longer than 140");

        let [entry] = &module.entry_points[..] else { panic!("{stem}.wgsl: one entry point") };
        assert_eq!((entry.name.as_str(), entry.stage), ("main", ShaderStage::Compute), "{stem}.wgsl");
        if entry.workgroup_size_overrides.is_some() {
            assert!(source.contains("@workgroup_size(LANES)"), "{stem}.wgsl: the size of a workgroup is written in the file, or is LANES");
            let blocks: &[&str] = if is_cooperative(&stem) { &["STEP", "SUBGROUP"] } else { &["BLOCK_M", "BLOCK_N"] };
            let tiled = ["TILE_M", "TILE_N"].iter().chain(blocks).all(|name| overridden(&module, name));
            assert!(tiled, "{stem}.wgsl: the size of a workgroup follows from its tile");
        } else {
            let invocations: u32 = entry.workgroup_size.iter().product();
            assert!(invocations <= 256, "{stem}.wgsl: {invocations} invocations");
            let lanes = constants(&module).get("LANES").copied().unwrap_or(invocations);
            assert_eq!(lanes, invocations, "{stem}.wgsl: LANES and the size of the workgroup");
        }

        let mut bindings = Vec::new();
        let mut immediates = Vec::new();
        for (_, variable) in module.global_variables.iter() {
            match variable.space {
                AddressSpace::Storage { access } => {
                    let binding = variable.binding.as_ref().expect("a storage buffer has a binding");
                    assert_eq!(binding.group, 0, "{stem}.wgsl: group 0 alone");
                    let runtime = matches!(module.types[variable.ty].inner, TypeInner::Array { size: naga::ArraySize::Dynamic, .. });
                    assert!(runtime, "{stem}.wgsl: binding {} is a plain array", binding.binding);
                    bindings.push((binding.binding, access.contains(StorageAccess::STORE)));
                }
                AddressSpace::Immediate => immediates.push(members(&module, variable.ty)),
                AddressSpace::WorkGroup | AddressSpace::Private => {}
                other => panic!("{stem}.wgsl: a variable in {other:?}"),
            }
        }
        let order: Vec<u32> = bindings.iter().map(|(binding, _)| *binding).collect();
        assert!(order.iter().copied().eq(0..order.len() as u32), "{stem}.wgsl: bindings in operand order from 0, found {order:?}");
        assert!(bindings.len() <= 8, "{stem}.wgsl: {} storage buffers", bindings.len());
        assert!(bindings.iter().any(|(_, writable)| *writable), "{stem}.wgsl: writes nothing");
        let batch = ("batch".to_owned(), TypeInner::Scalar(naga::Scalar::U32));
        assert_eq!(immediates, [vec![batch]], "{stem}.wgsl: the batch is the one immediate, in a structure as HLSL needs it");
    }
}

#[test]
fn launches_bind_what_their_kernels_declare() {
    for (example, launch) in launches() {
        let rules = example.op.rules();
        let (module, _) = validate(launch.kernel.name, launch.kernel.source);
        let mut declared = Vec::new();
        for (_, variable) in module.global_variables.iter() {
            if let AddressSpace::Storage { access } = variable.space {
                declared.push(access.contains(StorageAccess::STORE));
            }
        }
        let inside = |i: &usize| rules.packs().iter().any(|pack| pack.contains(i) && pack.start != *i); // a pack is one binding
        let mut bound: Vec<bool> = (0..example.types.len()).filter(|i| !inside(i)).map(|i| rules.updates().contains(&i)).collect();
        assert!(bound.len() <= 8, "{}: bindings", launch.kernel.name);
        if rules.updates().is_empty() {
            bound.push(true); // the outputs, last
            bound.extend(rules.extra_outputs(&example.types).iter().map(|_| true));
        }
        assert_eq!(declared, bound, "{}: which of the bindings are written", launch.kernel.name);
    }
}

#[test]
fn launches_set_every_override_of_their_file_and_no_other() {
    for (_, launch) in launches() {
        let name = launch.kernel.name;
        let (module, _) = validate(name, launch.kernel.source);
        let set: BTreeSet<&str> = launch.constants.iter().map(|(constant, _)| *constant).collect();
        assert_eq!(set.len(), launch.constants.len(), "{name}: a constant is set twice");
        for (_, constant) in module.overrides.iter() {
            // An expression, as in the size of an array, is an override without a name.
            let given = constant.name.as_deref().is_none_or(|name| set.contains(name));
            let default = constant.init.is_some();
            assert!(given || default, "{name}: the launch does not set {:?}, which has no default", constant.name);
        }
        for constant in set {
            assert!(overridden(&module, constant), "{name}: the launch sets {constant}, which the file does not have");
        }
    }
}

/// The text of a kernel that stages fours, with single elements in workgroup memory.
fn singles(text: &str) -> String {
    let stored = |array| {
        format!(
            "{array}[4u * at + 0u] = four.x; {array}[4u * at + 1u] = four.y; {array}[4u * at + 2u] = four.z; {array}[4u * at + 3u] = four.w;"
        )
    };
    let loaded = "return vec4(sums[4u * at + 0u], sums[4u * at + 1u], sums[4u * at + 2u], sums[4u * at + 3u]);";
    let text = text
        .replace("const WIDTH = 4u;", "const WIDTH = 1u;")
        .replace("Staged = vec4<f16>;", "Staged = f16;")
        .replace("Summed = vec4<f32>;", "Summed = f32;");
    text.replace("staged[at] = four;", &stored("staged")).replace("sums[at] = four;", &stored("sums")).replace("return sums[at];", loaded)
}

#[test]
fn every_shader_is_launched_by_some_operator_with_the_text_of_its_file() {
    let mut files = files();
    let mut launched = BTreeSet::new();
    for (_, launch) in launches() {
        let kernel = launch.kernel;
        // The text for f16 is that of the file with another word in the aliases that the name lists.
        let (stem, aliases) = kernel.name.split_once("_f16_").unwrap_or((kernel.name, ""));
        let eight = stem.strip_suffix("16").unwrap_or(stem);
        let file = eight.strip_suffix("_single").unwrap_or(eight);
        let mut text = files.get(file).unwrap_or_else(|| panic!("{file}.wgsl")).clone();
        if file != eight {
            text = singles(&text);
        }
        if eight != stem {
            text = text.replace("const EDGE = 8u;", "const EDGE = 16u;").replace("coop_mat8x8<", "coop_mat16x16<");
        }
        for alias in aliases.split('_').filter(|alias| !alias.is_empty()).map(str::to_uppercase) {
            let line = format!("\nalias {alias} = f32;");
            assert_eq!(text.matches(&line).count(), 1, "{stem}.wgsl: {line:?}");
            text = text.replace(&line, &format!("\nalias {alias} = f16;"));
        }
        let enable = if aliases.is_empty() || is_cooperative(stem) { "" } else { "enable f16;\n" };
        assert!(format!("{enable}{text}") == kernel.source, "{}", kernel.name);
        launched.insert(file);
    }
    files.retain(|stem, _| !launched.contains(stem.as_str()));
    assert!(files.is_empty(), "no example launches {:?}", files.keys());
}

#[test]
fn every_shader_translates_to_spirv_msl_and_hlsl_with_the_constants_of_its_launches() {
    for (_, launch) in launches() {
        let name = launch.kernel.name;
        let (module, info) = validate(name, launch.kernel.source);
        let values = launch.constants.iter().map(|&(constant, value)| (constant.to_owned(), value)).collect();
        let (module, info) = process_overrides(&module, &info, Some((ShaderStage::Compute, "main")), &values)
            .unwrap_or_else(|e| panic!("{name}: {e} with {:?}", launch.constants));

        let invocations: u32 = module.entry_points[0].workgroup_size.iter().product();
        assert!((1..=256).contains(&invocations), "{name}: {invocations} invocations with {:?}", launch.constants);
        let set: HashMap<&str, u32> = launch.constants.iter().map(|&(constant, value)| (constant, value as u32)).collect();
        if let Some(subgroup) = set.get("SUBGROUP") {
            let block = 2 * constants(&module)["EDGE"];
            assert_eq!(set["TILE_M"] / block * (set["TILE_N"] / block) * subgroup, invocations, "{name}: whole subgroups, one a block");
        } else if let Some(rows) = set.get("TILE_M") {
            let parts = set.get("PARTS").unwrap_or(&1);
            let blocks = rows / set["BLOCK_M"] * (set["TILE_N"] / set["BLOCK_N"]);
            assert_eq!(blocks * parts, invocations, "{name}: blocks of a tile and invocations");
            let second = set.get("TILE_MX").map_or(blocks, |rows| rows / set["BLOCK_M"] * (set["TILE_NX"] / set["BLOCK_N"]));
            assert_eq!(second * parts, invocations, "{name}: blocks of the second product's tile and invocations");
            assert!(*parts == 1 || set["STEP"].is_multiple_of(4 * parts), "{name}: {set:?}");
            assert!(rows.is_multiple_of(set["BLOCK_M"]) && set["TILE_N"].is_multiple_of(set["BLOCK_N"]), "{name}: {set:?}");
        }

        let mut workgroup_bytes = 0;
        for (_, variable) in module.global_variables.iter().filter(|(_, variable)| variable.space == AddressSpace::WorkGroup) {
            workgroup_bytes += module.types[variable.ty].inner.size(module.to_ctx());
        }
        let most = if is_cooperative(name) { 32 } else { 16 }; // what adapters with cooperative matrices are asked for
        assert!(workgroup_bytes <= most * 1024, "{name}: {workgroup_bytes} bytes of workgroup memory");

        let options = spv::Options { lang_version: (1, 3), ..Default::default() };
        let pipeline = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: "main".to_owned() };
        let words = spv::write_vec(&module, &info, &options, Some(&pipeline)).unwrap_or_else(|e| panic!("{name}: SPIR-V: {e}"));
        assert_eq!(words[0], 0x0723_0203, "{name}: SPIR-V's magic number");

        // Metal's matrices are of 8×8 by 32 invocations, and loaded from arrays of elements; naga would translate others too.
        let metal = (constants(&module).get("EDGE"), set.get("SUBGROUP")) == (Some(&8), Some(&32));
        if is_cooperative(name) && !metal {
            continue;
        }
        for (_, variable) in module.global_variables.iter().filter(|(_, variable)| metal && variable.space == AddressSpace::WorkGroup) {
            let TypeInner::Array { base, .. } = module.types[variable.ty].inner else { panic!("{name}: no array") };
            let element = &module.types[base].inner;
            let loaded = element.scalar_kind() == Some(ScalarKind::Float);
            assert!(!loaded || matches!(element, TypeInner::Scalar(_)), "{name}: Metal loads no matrices from fours");
        }
        let options = msl::Options { lang_version: (2, 4), ..Default::default() };
        let (text, translated) =
            msl::write_string(&module, &info, &options, &msl::PipelineOptions::default()).unwrap_or_else(|e| panic!("{name}: MSL: {e}"));
        assert!(translated.entry_point_names[0].is_ok() && text.contains("kernel void main_"), "{name}: MSL");

        if is_cooperative(name) {
            continue; // DX12 has no cooperative matrices
        }
        let immediates_target = Some(hlsl::BindTarget::default());
        let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_2, immediates_target, ..Default::default() };
        let pipeline = hlsl::PipelineOptions::default();
        let mut text = String::new();
        let written = hlsl::Writer::new(&mut text, &options, &pipeline).write(&module, &info, None);
        let reflected = written.unwrap_or_else(|e| panic!("{name}: HLSL: {e}"));
        assert!(reflected.entry_point_names[0].is_ok() && text.contains("numthreads"), "{name}: HLSL");
    }
}

/// What a workgroup takes is said twice: by the launch, which counts workgroups, and by the kernel, which finds its place.
#[test]
fn tiles_of_launches_are_those_of_their_kernels() {
    for (_, launch) in launches() {
        let name = launch.kernel.name;
        let (module, _) = validate(name, launch.kernel.source);
        let constants = constants(&module);
        let set: HashMap<&str, u32> = launch.constants.iter().map(|&(constant, value)| (constant, value as u32)).collect();
        let lanes = constants.get("LANES");
        let stem = name.split("_f16_").next().unwrap_or(name);
        let tile = match stem.split("_cooperative").next().unwrap_or(stem) {
            "sum" => set["OUTPUTS"],
            "adam" => lanes.unwrap() / set["SHARERS"],
            "dense" | "dense_grad" | "mlp_head_grad" => constants["TILE"],
            "mlp_head" => set["ROWS"],
            "softmax" | "softmax_grad" | "softmax_cross_entropy_grad" => lanes.unwrap() / set["SHARERS"],
            // These are one workgroup, or so many whatever the batch.
            "accuracy"
            | "adam_group"
            | "loss_head"
            | "mlp_head_loss"
            | "mlp_head_tick"
            | "record"
            | "scaled_tick"
            | "softmax_cross_entropy"
            | "tick"
            | "conv2d_weight_grad"
            | "conv2d_relu_pool_weight_grad" => 1,
            "matmul" | "conv2d" | "conv2d_input_grad" | "conv2d_relu_pool" | "conv2d_relu_pool_quads" | "conv2d_relu_pool_input_grad" => {
                set["TILE_M"]
            }
            "conv2d_relu_pool_grad" => set["TILE_MX"],
            _ if launch.spread().is_some() => {
                if stem.contains("weight_grad") {
                    1
                } else {
                    constants["TILE"]
                }
            }
            "overflow" => 16 * lanes.unwrap(),              // 8 words of each invocation
            "adam_quads" | "sum_slices" => *lanes.unwrap(), // counted in quads
            _ if name.ends_with("_quads") => 4 * lanes.unwrap(),
            _ => *lanes.unwrap(),
        };
        assert_eq!(launch.workgroups.tile as u32, tile, "{name}");
        if let (Some(tile), Some(block)) = (constants.get("TILE"), constants.get("BLOCK")) {
            let parts = constants.get("PARTS").unwrap_or(&1);
            assert_eq!((tile / block) * (tile / block) * parts, *lanes.unwrap(), "{name}: blocks of a tile and invocations");
        }
        if let Some(spread) = launch.spread() {
            assert!(spread.is_power_of_two() && spread >= LEAST_SPREAD && spread <= *lanes.unwrap(), "{name}: {spread}");
            assert_eq!(constants["TILE"] / LEAST_SPREAD, constants["MOST"], "{name}: room for what an invocation loads");
        }
        for (_, shared) in set.iter().filter(|(name, _)| name.starts_with("SHARERS") || **name == "OUTPUTS") {
            assert!(shared.is_power_of_two() && shared <= lanes.unwrap(), "{name}: {shared}");
        }
    }
}
