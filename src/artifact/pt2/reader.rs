//! From an archive to parameters, buffers and a program.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Program,
    program::{Binding, is_assertion},
    schema::{
        Argument, ExportedProgram, InputSpec, OutputSpec, Payload, PayloadConfig, Size, TensorMeta, Versioned,
    },
    ssa,
};
use crate::artifact::{
    ArtifactError, DeclaredInput, Module, NamedTensor, Parameter, ReadLimits,
    module::{self, Format, ModuleType},
    pickled::{self, Pickled},
    storage::{Place, Places, Storages, View},
    zip::Archive,
};

/// The schema's major version that is understood.
const MAJOR: u64 = 8;

/// Reads a PT2 archive, and where its tensors lie.
///
/// # Errors
/// [`ArtifactError`] naming the file and what is wrong with it.
pub(crate) fn read(archive: &Archive<'_>, limits: &ReadLimits) -> Result<(Module, Places), ArtifactError> {
    if archive.contains("byteorder") && archive.text("byteorder", 64, "bytes")?.trim() != "little" {
        return Err(ArtifactError::rejected(
            "byteorder",
            "a big-endian archive",
            "save it on a little-endian machine",
        ));
    }
    let mut models = archive.names().filter(|name| name.starts_with("models/") && name.ends_with(".json"));
    let (Some(place), None) = (models.next(), models.next()) else {
        return Err(ArtifactError::rejected(
            "models",
            "an archive without exactly one model",
            "save one program with torch.export.save of PyTorch 2.8 or newer",
        ));
    };
    let name = place.trim_start_matches("models/").trim_end_matches(".json");
    let text = archive.text(place, limits.json_bytes, "bytes of JSON")?;
    limits.check_time(place)?;
    let version: Versioned = json(place, &text)?;
    let version = version.schema_version;
    if version.major != MAJOR {
        return Err(ArtifactError::rejected(
            place,
            format!("export schema version {}.{}", version.major, version.minor),
            format!("export it with a PyTorch that writes version {MAJOR}"),
        ));
    }
    let program: ExportedProgram = json(place, &text)?;
    drop(text);
    limits.check_time(place)?;
    let mut reader = Reader {
        storages: Storages::new(archive, limits),
        archive,
        limits,
        weights: Payloads::read(archive, "weights", name, limits)?,
        constants: Payloads::read(archive, "constants", name, limits)?,
        alone: HashMap::new(),
        parameters: Vec::new(),
        buffers: Vec::new(),
        by_place: HashMap::new(),
        same_buffers: HashMap::new(),
        storages_of_buffers: Vec::new(),
        storages_of_others: Vec::new(),
        places: Places::default(),
    };
    let mut bindings = Vec::new();
    let mut declared = Vec::new();
    for spec in &program.graph_module.signature.input_specs {
        limits.check_time(place)?;
        bindings.push(reader.binding(place, spec, &program, &mut declared)?);
    }
    pickled::note_shared(&mut reader.buffers, &reader.storages_of_buffers, &reader.storages_of_others);
    for spec in &program.graph_module.signature.output_specs {
        check_output(place, spec)?;
    }
    let names = bindings.iter().filter_map(|binding| match binding {
        Binding::Parameter(name, _)
        | Binding::Buffer(name, _)
        | Binding::Constant(name, _)
        | Binding::Input(name, _) => Some(name.as_str()),
        Binding::Unused => None,
    });
    ssa::check(place, &program, names)?;
    limits.check_time(place)?;
    let types = module_types(&program);
    let ops =
        program.graph_module.graph.nodes.iter().filter_map(|node| node.target.strip_prefix("torch.ops."));
    let ops = ops.map(|target| target.rsplit_once('.').map_or(target, |(name, _)| name));
    let ops = ops.filter(|name| !is_assertion(name)).map(str::to_owned).collect();
    let shapes = declared.iter().map(|(declared, _)| declared.clone()).collect();
    let sizes = declared.into_iter().map(|(_, symbols)| symbols).collect();
    let module = Module {
        format: Format::Pt2,
        parameters: reader.parameters,
        buffers: reader.buffers,
        types,
        ops,
        declared: Some(shapes),
        program: module::Program::Pt2(Program::new(place.to_owned(), program, bindings, sizes)),
        limits: *limits,
        archive: archive.bytes().clone(),
        copied_bytes: 0,
    };
    Ok((module, reader.places))
}

fn json<'t, T: serde::Deserialize<'t>>(place: &str, text: &'t str) -> Result<T, ArtifactError> {
    serde_json::from_str(text).map_err(|error| ArtifactError::malformed(place, error.to_string()))
}

/// Where the archive keeps tensors of one kind.
enum Payloads {
    /// Each in a file of its own, as PyTorch 2.9 and newer write them.
    Files(BTreeMap<String, Payload>),
    /// All in one pickle, as PyTorch 2.8 writes them.
    Saved(BTreeMap<String, Pickled>),
}

impl Payloads {
    fn read(
        archive: &Archive<'_>,
        kind: &str,
        name: &str,
        limits: &ReadLimits,
    ) -> Result<Self, ArtifactError> {
        let place = format!("data/{kind}/{name}_{kind}_config.json");
        if archive.contains(&place) {
            let text = archive.text(&place, limits.json_bytes, "bytes of JSON")?;
            let config: PayloadConfig = json(&place, &text)?;
            return Ok(Self::Files(config.config));
        }
        let place = format!("data/{kind}/{name}.pt");
        if archive.contains(&place) {
            return pickled::saved(archive, &place, limits).map(Self::Saved);
        }
        Ok(Self::Files(BTreeMap::new()))
    }
}

struct Reader<'a, 'b> {
    archive: &'b Archive<'a>,
    limits: &'b ReadLimits,
    storages: Storages<'a, 'b>,
    weights: Payloads,
    constants: Payloads,
    /// Tensors that have a pickle of their own, by their file.
    alone: HashMap<String, Pickled>,
    parameters: Vec<Parameter>,
    buffers: Vec<NamedTensor>,
    /// Which parameter a file is already: tied weights are one parameter.
    by_place: HashMap<String, usize>,
    /// Buffers by the place of their elements.
    same_buffers: HashMap<String, usize>,
    /// The storages that the buffers lie in, in their order.
    storages_of_buffers: Vec<String>,
    /// The storages of all other tensors.
    storages_of_others: Vec<String>,
    places: Places,
}

/// What an input may look like: the shape without symbols, and the symbols.
type Declared = (DeclaredInput, Vec<Option<String>>);

impl Reader<'_, '_> {
    fn tensor(&mut self, name: &str) -> Result<Pickled, ArtifactError> {
        for (kind, payloads) in [("weights", &self.weights), ("constants", &self.constants)] {
            let payload = match payloads {
                Payloads::Saved(saved) => match saved.get(name) {
                    Some(found) => {
                        let storage = format!("{kind} {}", found.storage);
                        return Ok(Pickled { at: format!("{kind} {}", found.at), storage, ..found.clone() });
                    }
                    None => continue,
                },
                Payloads::Files(files) => match files.get(name) {
                    Some(payload) => payload,
                    None => continue,
                },
            };
            let file = format!("data/{kind}/{}", payload.path_name);
            if payload.use_pickle {
                // Each file is read once, however many names it has.
                if !self.alone.contains_key(&file) {
                    let one = pickled::saved(self.archive, &file, self.limits)?.remove("");
                    let one = one.ok_or_else(|| ArtifactError::malformed(&file, "it holds no tensor"))?;
                    let (at, storage) = (format!("{file} {}", one.at), format!("{file} {}", one.storage));
                    self.alone.insert(file.clone(), Pickled { at, storage, ..one });
                }
                return Ok(self.alone[&file].clone());
            }
            let meta = payload
                .tensor_meta
                .as_ref()
                .ok_or_else(|| ArtifactError::malformed(name, "it is no tensor"))?;
            let view = view(name, meta)?;
            let tensor = self.storages.tensor(&file, &view)?;
            let at = format!("{file} {:?} {:?} {}", view.sizes, view.strides, view.offset);
            let place = Place { within: None, file: file.clone(), view };
            return Ok(Pickled { tensor, requires_grad: meta.requires_grad, at, storage: file, place });
        }
        Err(ArtifactError::malformed(name, "the archive holds no such tensor"))
    }

    fn binding(
        &mut self,
        place: &str,
        spec: &InputSpec,
        program: &ExportedProgram,
        declared: &mut Vec<Declared>,
    ) -> Result<Binding, ArtifactError> {
        Ok(match spec {
            InputSpec::Parameter { arg, parameter_name } => {
                let Pickled { tensor, at, requires_grad, storage, place } = self.tensor(parameter_name)?;
                let index = match self.by_place.get(&at) {
                    Some(&index) => {
                        self.parameters[index].aliases.push(parameter_name.clone());
                        index
                    }
                    None => {
                        let (name, aliases) = (parameter_name.clone(), Vec::new());
                        self.parameters.push(Parameter { name, tensor, requires_grad, aliases });
                        self.places.parameters.push(place);
                        self.by_place.insert(at, self.parameters.len() - 1);
                        self.storages_of_others.push(storage);
                        self.parameters.len() - 1
                    }
                };
                Binding::Parameter(arg.name.clone(), index)
            }
            InputSpec::Buffer { arg, buffer_name, persistent } => {
                let Pickled { tensor, at, storage, place, .. } = self.tensor(buffer_name)?;
                // One tensor under two names is one buffer.
                let index = *self.same_buffers.entry(at).or_insert(self.buffers.len());
                if index == self.buffers.len() {
                    let (name, aliases, persistent) = (buffer_name.clone(), Vec::new(), *persistent);
                    self.buffers.push(NamedTensor { name, tensor, shared: false, aliases, persistent });
                    self.places.buffers.push(place);
                    self.storages_of_buffers.push(storage);
                } else {
                    self.buffers[index].aliases.push(buffer_name.clone());
                }
                Binding::Buffer(arg.name.clone(), index)
            }
            InputSpec::TensorConstant { arg, tensor_constant_name } => {
                let Pickled { tensor, storage, .. } = self.tensor(tensor_constant_name)?;
                self.storages_of_others.push(storage);
                Binding::Constant(arg.name.clone(), tensor)
            }
            InputSpec::UserInput(user) => match &user.arg {
                Argument::AsTensor(name) => {
                    let meta = program.graph_module.graph.tensor_values.get(&name.name);
                    let meta = meta.ok_or_else(|| {
                        ArtifactError::malformed(place, format!("input {:?} has no description", name.name))
                    })?;
                    declared.push(declare(&name.name, meta)?);
                    Binding::Input(name.name.clone(), declared.len() - 1)
                }
                // A constant that the program was specialised for.
                _ => Binding::Unused,
            },
            InputSpec::ConstantInput(_) => Binding::Unused,
            InputSpec::CustomObj(_) | InputSpec::Token(_) => {
                return Err(ArtifactError::rejected(
                    place,
                    "a custom object or token input",
                    "export tensors only",
                ));
            }
        })
    }
}

fn view(name: &str, meta: &TensorMeta) -> Result<View, ArtifactError> {
    let malformed = |reason: &str| ArtifactError::malformed(name, reason);
    let dtype = meta.dtype().ok_or_else(|| {
        ArtifactError::rejected(
            name,
            format!("element type {}", meta.dtype),
            "use float32 or another plain type",
        )
    })?;
    let fixed = |sizes: &[Size]| sizes.iter().map(Size::fixed).collect::<Option<Vec<_>>>();
    Ok(View {
        dtype,
        sizes: fixed(&meta.sizes).ok_or_else(|| malformed("a weight's size is not a number"))?,
        strides: fixed(&meta.strides).ok_or_else(|| malformed("a weight's stride is not a number"))?,
        offset: meta.storage_offset.fixed().ok_or_else(|| malformed("a weight's offset is not a number"))?,
    })
}

fn declare(name: &str, meta: &TensorMeta) -> Result<Declared, ArtifactError> {
    let dtype = meta.dtype().ok_or_else(|| {
        ArtifactError::rejected(
            name,
            format!("element type {}", meta.dtype),
            "use float32 or another plain type",
        )
    })?;
    if meta.sizes.iter().any(|size| matches!(size, Size::AsInt(..0))) {
        return Err(ArtifactError::malformed(name, "an input's size is negative"));
    }
    let sizes = meta.sizes.iter().map(Size::fixed).collect();
    let symbols = meta.sizes.iter().map(|size| size.symbol().map(str::to_owned)).collect();
    Ok((DeclaredInput { sizes, dtype }, symbols))
}

fn check_output(place: &str, spec: &OutputSpec) -> Result<(), ArtifactError> {
    let what = match spec {
        OutputSpec::UserOutput(_) | OutputSpec::BufferMutation { .. } | OutputSpec::UserInputMutation(_) => {
            return Ok(());
        }
        OutputSpec::LossOutput(_)
        | OutputSpec::GradientToParameter(_)
        | OutputSpec::GradientToUserInput(_) => "a joint forward and backward program",
        OutputSpec::ParameterMutation(_) => "a program that changes its parameters",
        OutputSpec::Token(_) => "a program with side effects",
    };
    Err(ArtifactError::rejected(place, what, "export the forward pass alone"))
}

/// The modules that the nodes were traced from, as their metadata tells; the first node that does not tell stands
/// among them without a class.
fn module_types(program: &ExportedProgram) -> Vec<ModuleType> {
    let mut types = BTreeSet::new();
    let mut silent = None;
    for node in &program.graph_module.graph.nodes {
        let stack = node.metadata.get("nn_module_stack").map_or("", String::as_str);
        for frame in stack.split(';') {
            let mut parts = frame.splitn(3, ',');
            match (parts.next(), parts.next(), parts.next()) {
                (Some(_), Some(path), Some(class)) if !class.is_empty() => {
                    types.insert(ModuleType { path: path.to_owned(), class: class.to_owned() });
                }
                _ => silent = silent.or(Some(&node.target)),
            }
        }
    }
    let silent = silent.map(|target| ModuleType { path: format!("a node {target}"), class: String::new() });
    types.into_iter().chain(silent).collect()
}
