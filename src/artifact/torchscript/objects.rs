//! The module tree of an archive's `data.pkl`: objects, their attributes, and the tensors among them.

use std::{collections::HashMap, sync::Arc};

use super::{program::Sources, syntax::Class};
use crate::{
    artifact::{
        ArtifactError, ModuleType, NamedTensor, Parameter,
        pickle::{Document, Item, ItemId},
        pickled::{self, Pickled},
        storage::{Places, Storages},
    },
    tensor::HostTensor,
};

/// An attribute of a module.
#[derive(Clone, Debug)]
pub(super) enum Attribute {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    List(Vec<Attribute>),
    Tuple(Vec<Attribute>),
    Parameter(usize),
    Buffer(usize),
    Constant(HostTensor),
    Module(u32),
    /// Something that no kernel needs; reading it is an error, having it is not.
    Opaque(&'static str),
}

/// One module of the tree.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) class: String,
    pub(super) attributes: HashMap<String, Attribute>,
    /// Whether it has parameters or buffers, or a module below it has.
    pub(super) has_weights: bool,
}

/// The tree, flat, and what it holds.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) objects: Vec<Object>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) buffers: Vec<NamedTensor>,
    pub(super) types: Vec<ModuleType>,
    pub(super) places: Places,
}

/// Builds the tree; the root is object 0.
pub(super) struct TreeReader<'d, 'a, 'b> {
    pub(super) place: &'d str,
    pub(super) document: &'d Document,
    pub(super) storages: &'d mut Storages<'a, 'b>,
    pub(super) sources: &'d Sources,
    pub(super) nesting: usize,
    pub(super) tree: Tree,
    /// Objects by item, so that a module that is reached twice stays one.
    pub(super) known: HashMap<ItemId, u32>,
    /// Parameters by storage and place in it, so that tied weights stay one parameter.
    pub(super) tied: HashMap<String, usize>,
    /// Buffers in the same way.
    pub(super) same_buffers: HashMap<String, usize>,
    /// The storages that the buffers lie in, in their order.
    pub(super) storages_of_buffers: Vec<String>,
    /// The storages of all other tensors.
    pub(super) storages_of_others: Vec<String>,
    /// Attributes read so far. What the document remembers once it may name many times, in lists of lists.
    pub(super) unfolded: usize,
    /// Bytes of paths, classes and texts so far: a few long ones may be named many times.
    pub(super) name_bytes: usize,
}

/// The most attributes that a module tree may unfold to.
const MAX_ATTRIBUTES: usize = 100_000;

/// After how many attributes the clock is looked at.
const ATTRIBUTES_A_LOOK: usize = 256;

/// The most bytes that the paths and classes of all modules, the names of their tensors and their texts may
/// have together.
const MAX_NAME_BYTES: usize = 4 << 20;

/// What every module and tensor counts beside its name: their number is bounded too.
const NAME_OVERHEAD: usize = 32;

impl TreeReader<'_, '_, '_> {
    fn spend_name(&mut self, bytes: usize) -> Result<(), ArtifactError> {
        self.name_bytes = self.name_bytes.saturating_add(bytes).saturating_add(NAME_OVERHEAD);
        if self.name_bytes > MAX_NAME_BYTES {
            return Err(ArtifactError::limit(
                self.place,
                "bytes of names and texts in all modules",
                MAX_NAME_BYTES,
            ));
        }
        Ok(())
    }

    fn malformed<T>(&self, reason: impl Into<String>) -> Result<T, ArtifactError> {
        Err(ArtifactError::malformed(self.place, reason))
    }

    /// Reads an object and everything below it.
    pub(super) fn object(&mut self, id: ItemId, path: &str, depth: usize) -> Result<u32, ArtifactError> {
        if let Some(&known) = self.known.get(&id) {
            self.reach_again(known, path, depth)?;
            return Ok(known);
        }
        if depth > self.nesting {
            return Err(ArtifactError::limit(self.place, "levels of modules", self.nesting));
        }
        self.storages.check_time(self.place)?;
        let Item::Object { class, state } = self.document.get(id) else {
            return self.malformed(format!("module {path:?} is no object"));
        };
        let Some((module, name)) = self.document.global(*class) else {
            return self.malformed(format!("module {path:?} has no class"));
        };
        let class_name = format!("{module}.{name}");
        self.spend_name(path.len() + 2 * class_name.len())?;
        let index = self.tree.objects.len() as u32;
        self.known.insert(id, index);
        let object = Object { class: class_name.clone(), attributes: HashMap::new(), has_weights: false };
        self.tree.objects.push(object);
        self.tree.types.push(ModuleType { path: path.to_owned(), class: plain_class(&class_name) });
        let class = self.sources.class(&class_name);
        let class = class.ok_or_else(|| {
            ArtifactError::malformed(self.place, format!("the archive has no code for class {class_name:?}"))
        })?;
        if class.named_tuple {
            return self.malformed(format!("module {path:?} is of class {class_name:?}, a named tuple"));
        }
        let pairs = match state.map(|state| self.document.get(state)) {
            Some(Item::Dict(pairs)) => pairs.as_slice(),
            None => &[],
            Some(_) => return self.malformed(format!("the state of module {path:?} is no dictionary")),
        };
        // Own tensors before those of submodules, which is PyTorch's order of names.
        let mut modules = Vec::new();
        for &(key, value) in pairs {
            let Some(key) = self.document.text(key) else {
                return self.malformed(format!("an attribute of module {path:?} has no name"));
            };
            if matches!(self.document.get(value), Item::Object { .. }) {
                modules.push((key, value));
                continue;
            }
            let attribute = self.attribute(value, key, path, class, depth)?;
            let object = &mut self.tree.objects[index as usize];
            object.has_weights |= matches!(attribute, Attribute::Parameter(_) | Attribute::Buffer(_));
            let before = object.attributes.insert(key.to_owned(), attribute);
            if before.is_some() {
                return self.malformed(format!("module {path:?} has two attributes {key:?}"));
            }
        }
        for (key, value) in modules {
            let child = self.object(value, &join(path, key), depth + 1)?;
            let has_weights = self.tree.objects[child as usize].has_weights;
            let object = &mut self.tree.objects[index as usize];
            object.has_weights |= has_weights;
            if object.attributes.insert(key.to_owned(), Attribute::Module(child)).is_some() {
                return self.malformed(format!("module {path:?} has two attributes {key:?}"));
            }
        }
        Ok(index)
    }

    /// Gives the tensors of a module that is there under another path their other names.
    fn reach_again(&mut self, known: u32, path: &str, depth: usize) -> Result<(), ArtifactError> {
        // Without weights nothing has a name, however often it is reached.
        if !self.tree.objects[known as usize].has_weights {
            return Ok(());
        }
        if depth > self.nesting {
            return Err(ArtifactError::limit(self.place, "levels of modules", self.nesting));
        }
        self.spend_name(path.len())?;
        let mut modules = Vec::new();
        let mut tensors = Vec::new();
        for (key, attribute) in &self.tree.objects[known as usize].attributes {
            match attribute {
                Attribute::Module(child) => modules.push((join(path, key), *child)),
                Attribute::Parameter(_) | Attribute::Buffer(_) => {
                    tensors.push((join(path, key), attribute.clone()));
                }
                _ => {}
            }
        }
        // A map has no order of its own, and equal archives are to give equal modules.
        modules.sort_unstable();
        tensors.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, tensor) in tensors {
            self.spend_name(name.len())?;
            match tensor {
                Attribute::Parameter(index) => self.tree.parameters[index].aliases.push(name),
                Attribute::Buffer(index) => self.tree.buffers[index].aliases.push(name),
                _ => {}
            }
        }
        modules.into_iter().try_for_each(|(path, child)| self.reach_again(child, &path, depth + 1))
    }

    fn attribute(
        &mut self,
        id: ItemId,
        key: &str,
        path: &str,
        class: &Class,
        depth: usize,
    ) -> Result<Attribute, ArtifactError> {
        if depth > self.nesting {
            return Err(ArtifactError::limit(self.place, "levels of nesting", self.nesting));
        }
        self.unfolded += 1;
        if self.unfolded > MAX_ATTRIBUTES {
            return Err(ArtifactError::limit(self.place, "attributes of all modules", MAX_ATTRIBUTES));
        }
        if self.unfolded.is_multiple_of(ATTRIBUTES_A_LOOK) {
            self.storages.check_time(self.place)?;
        }
        Ok(match self.document.get(id) {
            Item::None => Attribute::None,
            Item::Bool(value) => Attribute::Bool(*value),
            Item::Int(value) => Attribute::Int(*value),
            Item::Float(value) => Attribute::Float(*value),
            Item::Str(text) => {
                self.spend_name(text.len())?;
                Attribute::Str(text.as_str().into())
            }
            Item::List(items) => Attribute::List(self.attributes(items, path, class, depth)?),
            Item::Tuple(items) => Attribute::Tuple(self.attributes(items, path, class, depth)?),
            Item::Call { function, arguments } => match self.document.global(*function) {
                Some(("torch._utils", _)) => {
                    let name = join(path, key);
                    let Pickled { tensor, requires_grad, at, storage, place } =
                        pickled::tensor(self.place, self.document, self.storages, id, "data")?;
                    self.spend_name(name.len())?;
                    if class.parameters.contains(key) {
                        let new = self.tree.parameters.len();
                        let index = *self.tied.entry(at).or_insert(new);
                        if index == new {
                            let aliases = Vec::new();
                            self.tree.parameters.push(Parameter { name, tensor, requires_grad, aliases });
                            self.tree.places.parameters.push(place);
                            self.storages_of_others.push(storage);
                        } else {
                            self.tree.parameters[index].aliases.push(name);
                        }
                        Attribute::Parameter(index)
                    } else if class.buffers.contains(key) {
                        // One tensor under two names is one buffer.
                        let new = self.tree.buffers.len();
                        let index = *self.same_buffers.entry(at).or_insert(new);
                        if index == new {
                            let (aliases, persistent) = (Vec::new(), true);
                            let buffer = NamedTensor { name, tensor, shared: false, aliases, persistent };
                            self.tree.buffers.push(buffer);
                            self.tree.places.buffers.push(place);
                            self.storages_of_buffers.push(storage);
                        } else {
                            self.tree.buffers[index].aliases.push(name);
                        }
                        Attribute::Buffer(index)
                    } else {
                        self.storages_of_others.push(storage);
                        Attribute::Constant(tensor)
                    }
                }
                Some(("torch.jit._pickle", _)) => match self.document.elements(*arguments) {
                    Some(&[value, ..]) => self.attribute(value, key, path, class, depth + 1)?,
                    _ => return self.malformed(format!("attribute {key:?} has no value")),
                },
                _ => Attribute::Opaque("a constructed object"),
            },
            Item::Dict(_) => Attribute::Opaque("a dictionary"),
            Item::Object { .. } => Attribute::Opaque("a module in a list"),
            Item::Global { .. } | Item::Persistent(_) => Attribute::Opaque("a reference"),
        })
    }

    fn attributes(
        &mut self,
        items: &[ItemId],
        path: &str,
        class: &Class,
        depth: usize,
    ) -> Result<Vec<Attribute>, ArtifactError> {
        items.iter().map(|&item| self.attribute(item, "", path, class, depth + 10)).collect()
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The class as its author named it: without `__torch__.` and without the marks that keep equal names apart.
pub(super) fn plain_class(qualified: &str) -> String {
    let parts =
        qualified.split('.').filter(|part| *part != "__torch__" && !part.starts_with("___torch_mangle_"));
    parts.collect::<Vec<_>>().join(".")
}
