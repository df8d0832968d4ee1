//! What a pickle holds, as data.

/// The number of an item in its [`Document`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ItemId(pub(super) u32);

/// One value of a pickle.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    List(Vec<ItemId>),
    Tuple(Vec<ItemId>),
    Dict(Vec<(ItemId, ItemId)>),
    /// A class or function by name: a tag, nothing more.
    Global {
        module: String,
        name: String,
    },
    /// What Python would make by calling `function` with `arguments` (a tuple).
    Call {
        function: ItemId,
        arguments: ItemId,
    },
    /// An instance of `class` and the state it was given last.
    Object {
        class: ItemId,
        state: Option<ItemId>,
    },
    /// A reference to something outside of the pickle, such as a tensor's storage.
    Persistent(ItemId),
}

/// All values of one pickle.
#[derive(Debug)]
pub(crate) struct Document {
    pub(super) items: Vec<Item>,
    pub(super) root: ItemId,
}

impl Document {
    /// The value the pickle is of.
    pub(crate) fn root(&self) -> ItemId {
        self.root
    }

    /// A value by its number.
    pub(crate) fn get(&self, id: ItemId) -> &Item {
        &self.items[id.0 as usize]
    }

    /// The elements of a list or a tuple.
    pub(crate) fn elements(&self, id: ItemId) -> Option<&[ItemId]> {
        match self.get(id) {
            Item::List(items) | Item::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// A text.
    pub(crate) fn text(&self, id: ItemId) -> Option<&str> {
        match self.get(id) {
            Item::Str(text) => Some(text),
            _ => None,
        }
    }

    /// An integer.
    pub(crate) fn int(&self, id: ItemId) -> Option<i64> {
        match self.get(id) {
            Item::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// A list or tuple of integers that are sizes, strides or offsets.
    pub(crate) fn sizes(&self, id: ItemId) -> Option<Vec<usize>> {
        self.elements(id)?.iter().map(|&id| usize::try_from(self.int(id)?).ok()).collect()
    }

    /// The module and name of a global.
    pub(crate) fn global(&self, id: ItemId) -> Option<(&str, &str)> {
        match self.get(id) {
            Item::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }
}
