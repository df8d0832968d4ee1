//! The stack machine, bounded in steps, stack and memo.

use std::collections::HashMap;

use super::{Document, Item, ItemId, opcode as op};
use crate::artifact::{ArtifactError, ReadLimits, limits::MAX_TEXT_BYTES};

/// After how many instructions the clock is looked at.
const STEPS_A_LOOK: usize = 1024;

/// Reads one pickle of protocol 2.
///
/// # Errors
/// [`ArtifactError::Rejected`] for a name that is not on the whitelist, [`ArtifactError::Limit`] past a
/// limit, [`ArtifactError::Malformed`] for everything else that torch does not write.
pub(crate) fn read(place: &str, bytes: &[u8], limits: &ReadLimits) -> Result<Document, ArtifactError> {
    let mut machine = Machine {
        place,
        bytes,
        at: 0,
        limits,
        items: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    for step in 0..limits.pickle_steps {
        if step.is_multiple_of(STEPS_A_LOOK) {
            limits.check_time(place)?;
        }
        if let Some(root) = machine.step()? {
            if machine.at != bytes.len() {
                return Err(machine.malformed("there are bytes after its end"));
            }
            return Ok(Document { items: machine.items, root });
        }
    }
    Err(ArtifactError::limit(place, "pickle instructions", limits.pickle_steps))
}

struct Machine<'a> {
    place: &'a str,
    bytes: &'a [u8],
    at: usize,
    limits: &'a ReadLimits,
    items: Vec<Item>,
    stack: Vec<ItemId>,
    marks: Vec<usize>,
    memo: HashMap<u32, ItemId>,
}

impl Machine<'_> {
    fn malformed(&self, reason: impl std::fmt::Display) -> ArtifactError {
        ArtifactError::malformed(format!("{} at byte {}", self.place, self.at), reason.to_string())
    }

    fn take(&mut self, len: usize) -> Result<&[u8], ArtifactError> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else { return Err(self.malformed("the pickle is cut short")) };
        let start = std::mem::replace(&mut self.at, end);
        Ok(&self.bytes[start..end])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ArtifactError> {
        Ok(self.take(N)?.try_into().expect("take gives exactly N bytes"))
    }

    fn byte(&mut self) -> Result<u8, ArtifactError> {
        Ok(self.array::<1>()?[0])
    }

    fn text(&mut self, len: usize) -> Result<String, ArtifactError> {
        if len > MAX_TEXT_BYTES && self.bytes.len() - self.at >= len {
            return Err(ArtifactError::limit(self.place, "bytes in a text or name", MAX_TEXT_BYTES));
        }
        let bytes = self.take(len)?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    fn line(&mut self) -> Result<String, ArtifactError> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&b| b == b'\n');
        let Some(len) = len else { return Err(self.malformed("a name is cut short")) };
        let line = self.text(len)?;
        self.take(1)?;
        Ok(line)
    }

    fn push(&mut self, item: Item) -> Result<(), ArtifactError> {
        let id = ItemId(self.items.len() as u32);
        self.items.push(item);
        self.push_id(id)
    }

    fn push_id(&mut self, id: ItemId) -> Result<(), ArtifactError> {
        if self.stack.len() >= self.limits.pickle_stack {
            return Err(ArtifactError::limit(
                self.place,
                "values on a pickle's stack",
                self.limits.pickle_stack,
            ));
        }
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<ItemId, ArtifactError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.malformed("an instruction finds too few values"));
        }
        Ok(self.stack.pop().expect("the stack is longer than its floor"))
    }

    fn top(&self) -> Result<ItemId, ArtifactError> {
        self.stack.last().copied().ok_or_else(|| self.malformed("an instruction finds too few values"))
    }

    fn since_mark(&mut self) -> Result<Vec<ItemId>, ArtifactError> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.malformed("an instruction finds no mark")),
        }
    }

    fn remember(&mut self, key: u32) -> Result<(), ArtifactError> {
        let top = self.top()?;
        self.memo.insert(key, top);
        if self.memo.len() > self.limits.pickle_memo {
            return Err(ArtifactError::limit(self.place, "remembered values", self.limits.pickle_memo));
        }
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), ArtifactError> {
        match self.memo.get(&key) {
            Some(&id) => self.push_id(id),
            None => Err(self.malformed("it recalls what it never remembered")),
        }
    }

    fn extend_list(&mut self, new: Vec<ItemId>) -> Result<(), ArtifactError> {
        let list = self.top()?;
        match &mut self.items[list.0 as usize] {
            Item::List(items) => items.extend(new),
            _ => return Err(self.malformed("it appends to what is no list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, new: &[ItemId]) -> Result<(), ArtifactError> {
        let dict = self.top()?;
        if !new.len().is_multiple_of(2) {
            return Err(self.malformed("a key has no value"));
        }
        match &mut self.items[dict.0 as usize] {
            Item::Dict(items) => items.extend(new.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            _ => return Err(self.malformed("it sets keys of what is no dictionary")),
        }
        Ok(())
    }

    fn tuple(&mut self, len: usize) -> Result<(), ArtifactError> {
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Item::Tuple(items))
    }

    fn global(&mut self) -> Result<(), ArtifactError> {
        let (module, name) = (self.line()?, self.line()?);
        if !op::is_allowed(&module, &name) {
            return Err(ArtifactError::rejected(
                format!("{} at byte {}", self.place, self.at),
                format!("the pickle global {module}.{name}"),
                "an artifact holds tensors, numbers, texts and modules of its own code only",
            ));
        }
        self.push(Item::Global { module, name })
    }

    fn class(&self, id: ItemId) -> Result<ItemId, ArtifactError> {
        match self.items[id.0 as usize] {
            Item::Global { .. } => Ok(id),
            _ => Err(self.malformed("it makes an object of what is no class")),
        }
    }

    fn build(&mut self) -> Result<(), ArtifactError> {
        let new = self.pop()?;
        let object = self.top()?;
        match &mut self.items[object.0 as usize] {
            Item::Object { state, .. } if state.is_none() => *state = Some(new),
            // The version marks that a state dictionary carries.
            Item::Dict(_) => {}
            _ => return Err(self.malformed("it sets the state of what is no fresh object")),
        }
        Ok(())
    }

    fn long(&mut self) -> Result<(), ArtifactError> {
        let len = usize::from(self.byte()?);
        if len > 8 {
            return Err(self.malformed("an integer has more than 64 bits"));
        }
        let bytes = self.take(len)?;
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..len].copy_from_slice(bytes);
        self.push(Item::Int(i64::from_le_bytes(wide)))
    }

    /// One instruction; the value when it was the last.
    fn step(&mut self) -> Result<Option<ItemId>, ArtifactError> {
        match self.byte()? {
            op::PROTO => {
                let version = self.byte()?;
                if version != 2 {
                    return Err(self.malformed(format!("pickle protocol {version} instead of 2")));
                }
            }
            op::STOP => {
                let root = self.pop()?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    return Err(self.malformed("values are left over"));
                }
                return Ok(Some(root));
            }
            op::MARK => {
                if self.marks.len() >= self.limits.pickle_stack {
                    let limit = self.limits.pickle_stack;
                    return Err(ArtifactError::limit(self.place, "marks on a pickle's stack", limit));
                }
                self.marks.push(self.stack.len());
            }
            op::POP => {
                self.pop()?;
            }
            op::NONE => self.push(Item::None)?,
            op::NEWTRUE => self.push(Item::Bool(true))?,
            op::NEWFALSE => self.push(Item::Bool(false))?,
            op::BININT => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Item::Int(value.into()))?;
            }
            op::BININT1 => {
                let value = self.byte()?;
                self.push(Item::Int(value.into()))?;
            }
            op::BININT2 => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Item::Int(value.into()))?;
            }
            op::LONG1 => self.long()?,
            op::BINFLOAT => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Item::Float(value))?;
            }
            op::BINUNICODE => {
                let len = u32::from_le_bytes(self.array()?) as usize;
                let text = self.text(len)?;
                self.push(Item::Str(text))?;
            }
            op::SHORT_BINUNICODE => {
                let len = self.byte()?.into();
                let text = self.text(len)?;
                self.push(Item::Str(text))?;
            }
            op::EMPTY_TUPLE => self.push(Item::Tuple(Vec::new()))?,
            op::EMPTY_LIST => self.push(Item::List(Vec::new()))?,
            op::EMPTY_DICT => self.push(Item::Dict(Vec::new()))?,
            op::TUPLE => {
                let items = self.since_mark()?;
                self.push(Item::Tuple(items))?;
            }
            op::TUPLE1 => self.tuple(1)?,
            op::TUPLE2 => self.tuple(2)?,
            op::TUPLE3 => self.tuple(3)?,
            op::APPEND => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            op::APPENDS => {
                let items = self.since_mark()?;
                self.extend_list(items)?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])?;
            }
            op::SETITEMS => {
                let items = self.since_mark()?;
                self.extend_dict(&items)?;
            }
            op::GLOBAL => self.global()?,
            op::REDUCE => self.reduce()?,
            op::NEWOBJ => {
                self.pop()?;
                let class = self.pop()?;
                let class = self.class(class)?;
                self.push(Item::Object { class, state: None })?;
            }
            op::BUILD => self.build()?,
            op::BINPERSID => {
                let id = self.pop()?;
                self.push(Item::Persistent(id))?;
            }
            op::BINPUT => {
                let key = self.byte()?.into();
                self.remember(key)?;
            }
            op::LONG_BINPUT => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            op::BINGET => {
                let key = self.byte()?.into();
                self.recall(key)?;
            }
            op::LONG_BINGET => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            other => {
                return Err(self.malformed(format!("instruction {other:#04x} is none that torch writes")));
            }
        }
        Ok(None)
    }

    fn reduce(&mut self) -> Result<(), ArtifactError> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let function = self.class(function)?;
        let is_dict = matches!(&self.items[function.0 as usize],
            Item::Global { module, name } if module == "collections" && name == "OrderedDict");
        if is_dict && self.items[arguments.0 as usize] == Item::Tuple(Vec::new()) {
            return self.push(Item::Dict(Vec::new()));
        }
        self.push(Item::Call { function, arguments })
    }
}
