//! What the catalogue says about a kernel: Urza's fields, and the forms they come in.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{digest::Digest, fault::shortened, id::KernelId, tensor::Shape};

/// How far a kernel has come in the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its compiler's checks have passed.
    Validated,
    /// In use somewhere.
    Deployed,
    /// Served only where the configuration says so.
    Testing,
    /// Never served.
    Invalid,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Validated => "validated",
            Self::Deployed => "deployed",
            Self::Testing => "testing",
            Self::Invalid => "invalid",
        })
    }
}

/// A kernel's catalogue entry.
///
/// Read from and written to JSON in the catalogue's own form: the descriptive fields stand in an object
/// `metadata`. A catalogue that cannot store that object keeps the same fields in `validation_report`, so
/// they are looked for there too; `metadata` wins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Entry", into = "Entry")]
pub struct Metadata {
    /// The kernel's name.
    pub id: KernelId,
    /// The blueprint it was compiled from.
    pub blueprint_id: Option<String>,
    /// How far it has come.
    pub status: Status,
    /// Which compiler made it.
    pub compilation_pipeline: Option<String>,
    /// Where its bytes are.
    pub kernel_binary_ref: Option<String>,
    /// The report of the catalogue's own checks, as it came.
    pub validation_report: Option<Value>,
    /// When the entry was made, as the catalogue writes it.
    pub created_at: Option<String>,
    /// When the entry last changed, as the catalogue writes it.
    pub updated_at: Option<String>,
    /// A name for people.
    pub name: Option<String>,
    /// The input's shape without its batch dimension.
    pub input_shape: Option<Shape>,
    /// The output's shape without its batch dimension.
    pub output_shape: Option<Shape>,
    /// How many parameters it should have.
    pub parameter_count: Option<u64>,
    /// What it asks of the device, as it came.
    pub device_requirements: Option<Value>,
    /// What it needs of memory, in MiB.
    pub memory_footprint_mb: Option<f64>,
    /// What it was compiled for.
    pub compilation_target: Option<String>,
    /// SHA-256 of its bytes.
    pub checksum: Option<Digest>,
    /// An Ed25519 signature over that, in the form `kasmina sign` writes. What it is worth is the validator's
    /// matter.
    pub signature: Option<String>,
    /// Which version of the format it follows.
    pub compatibility_version: Option<String>,
    /// The kernel that it was made of by training, as the catalogue names it.
    pub parent_kernel_id: Option<String>,
    /// SHA-256 of that one's bytes, as the catalogue writes it.
    pub parent_checksum: Option<String>,
}

/// Why a text is not a catalogue entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Not JSON, or a field of the entry itself is missing or of another type.
    #[error("the catalogue entry is malformed: {reason}")]
    Entry {
        /// What the reader found.
        reason: String,
    },
    /// A descriptive field has the wrong form. It is not passed over: a checksum that cannot be read must
    /// not become a kernel without a checksum.
    #[error("field {field} of {place} in the catalogue entry is malformed: {reason}")]
    Field {
        /// Which field.
        field: &'static str,
        /// `metadata` or `validation_report`.
        place: &'static str,
        /// What the reader found.
        reason: String,
    },
    /// The entry speaks of two kernels.
    #[error("the catalogue entry of kernel {id} describes kernel {described}: correct metadata.kernel_id")]
    OtherKernel {
        /// The entry's id.
        id: KernelId,
        /// The id its description names.
        described: String,
    },
}

impl Metadata {
    /// The entry of a kernel about which nothing but its name is known.
    pub fn bare(id: KernelId) -> Self {
        Self {
            id,
            blueprint_id: None,
            status: Status::Validated,
            compilation_pipeline: None,
            kernel_binary_ref: None,
            validation_report: None,
            created_at: None,
            updated_at: None,
            name: None,
            input_shape: None,
            output_shape: None,
            parameter_count: None,
            device_requirements: None,
            memory_footprint_mb: None,
            compilation_target: None,
            checksum: None,
            signature: None,
            compatibility_version: None,
            parent_kernel_id: None,
            parent_checksum: None,
        }
    }

    /// Reads a catalogue entry.
    ///
    /// # Errors
    /// [`MetadataError`] naming the field at fault.
    pub fn from_json(bytes: &[u8]) -> Result<Self, MetadataError> {
        // Two steps, because serde would flatten the second one's error into text.
        let entry: Entry = serde_json::from_slice(bytes)
            .map_err(|error| MetadataError::Entry { reason: shortened(&error.to_string()) })?;
        Self::try_from(entry)
    }

    /// The entry as JSON, in the catalogue's form.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("every key is a string and every number is finite or null")
    }
}

/// The catalogue's own form of an entry.
#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    id: KernelId,
    #[serde(default)]
    blueprint_id: Option<String>,
    status: Status,
    #[serde(default)]
    compilation_pipeline: Option<String>,
    #[serde(default)]
    kernel_binary_ref: Option<String>,
    // Not an alias: an entry with both spellings would then be a duplicate field.
    #[serde(default, skip_serializing)]
    binary_ref: Option<String>,
    #[serde(default)]
    validation_report: Option<Value>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    updated_at: Option<String>,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
}

/// Looks one descriptive field up, first in `metadata`, then in `validation_report`.
struct Fields<'a>([(&'static str, Option<&'a Map<String, Value>>); 2]);

impl Fields<'_> {
    fn get<T: serde::de::DeserializeOwned>(&self, field: &'static str) -> Result<Option<T>, MetadataError> {
        for (place, object) in self.0 {
            match object.and_then(|object| object.get(field)) {
                None | Some(Value::Null) => {}
                Some(value) => {
                    return T::deserialize(value).map(Some).map_err(|error| MetadataError::Field {
                        field,
                        place,
                        reason: shortened(&error.to_string()),
                    });
                }
            }
        }
        Ok(None)
    }

    /// As [`get`](Self::get) of what nothing depends on: what is no text is passed over.
    fn text(&self, field: &'static str) -> Result<Option<String>, MetadataError> {
        let value = self.get::<Value>(field)?;
        Ok(value.as_ref().and_then(Value::as_str).map(str::to_owned))
    }
}

impl TryFrom<Entry> for Metadata {
    type Error = MetadataError;

    fn try_from(entry: Entry) -> Result<Self, Self::Error> {
        let report = entry.validation_report.as_ref().and_then(Value::as_object);
        let fields = Fields([("metadata", entry.metadata.as_ref()), ("validation_report", report)]);
        if let Some(described) = fields.get::<String>("kernel_id")?.filter(|other| other != entry.id.as_str())
        {
            let described = shortened(&described);
            return Err(MetadataError::OtherKernel { id: entry.id, described });
        }
        Ok(Self {
            name: fields.get("name")?,
            input_shape: fields.get("input_shape")?,
            output_shape: fields.get("output_shape")?,
            parameter_count: fields.get("parameter_count")?,
            device_requirements: fields.get("device_requirements")?,
            memory_footprint_mb: fields.get("memory_footprint_mb")?,
            compilation_target: fields.get("compilation_target")?,
            checksum: fields.get::<String>("checksum")?.map(|text| digest(&text)).transpose()?,
            signature: fields.get("signature")?,
            compatibility_version: fields.get("compatibility_version")?,
            parent_kernel_id: fields.text("parent_kernel_id")?,
            parent_checksum: fields.text("parent_checksum")?,
            blueprint_id: match entry.blueprint_id {
                None => fields.get("blueprint_id")?,
                some => some,
            },
            id: entry.id,
            status: entry.status,
            compilation_pipeline: entry.compilation_pipeline,
            kernel_binary_ref: entry.kernel_binary_ref.or(entry.binary_ref),
            created_at: entry.created_at,
            updated_at: entry.updated_at,
            validation_report: entry.validation_report,
        })
    }
}

fn digest(text: &str) -> Result<Digest, MetadataError> {
    text.strip_prefix("sha256:").unwrap_or(text).parse().map_err(|error| MetadataError::Field {
        field: "checksum",
        place: "metadata or validation_report",
        reason: format!("{error}"),
    })
}

impl From<Metadata> for Entry {
    fn from(metadata: Metadata) -> Self {
        let mut described = Map::new();
        let mut put = |field: &str, value: Option<Value>| {
            if let Some(value) = value {
                described.insert(field.to_owned(), value);
            }
        };
        let shape = |shape: Shape| Value::from(shape.to_vec());
        put("kernel_id", Some(metadata.id.as_str().into()));
        put("blueprint_id", metadata.blueprint_id.clone().map(Value::from));
        put("name", metadata.name.map(Value::from));
        put("input_shape", metadata.input_shape.map(shape));
        put("output_shape", metadata.output_shape.map(shape));
        put("parameter_count", metadata.parameter_count.map(Value::from));
        put("device_requirements", metadata.device_requirements);
        put("memory_footprint_mb", metadata.memory_footprint_mb.map(Value::from));
        put("compilation_target", metadata.compilation_target.map(Value::from));
        put("checksum", metadata.checksum.map(|digest| digest.to_string().into()));
        put("signature", metadata.signature.map(Value::from));
        put("compatibility_version", metadata.compatibility_version.map(Value::from));
        put("parent_kernel_id", metadata.parent_kernel_id.map(Value::from));
        put("parent_checksum", metadata.parent_checksum.map(Value::from));
        Self {
            id: metadata.id,
            blueprint_id: metadata.blueprint_id,
            status: metadata.status,
            compilation_pipeline: metadata.compilation_pipeline,
            kernel_binary_ref: metadata.kernel_binary_ref,
            binary_ref: None,
            validation_report: metadata.validation_report,
            created_at: metadata.created_at,
            updated_at: metadata.updated_at,
            metadata: Some(described),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<Metadata, MetadataError> {
        Metadata::from_json(value.to_string().as_bytes())
    }

    #[test]
    fn both_spellings_of_the_reference_are_read() {
        for spelling in ["kernel_binary_ref", "binary_ref"] {
            let entry = json!({"id": "k", "status": "deployed", spelling: "k.pt2", "extra": [1]});
            let metadata = read(&entry).unwrap();
            assert_eq!(metadata.kernel_binary_ref.as_deref(), Some("k.pt2"));
            assert_eq!(metadata.status, Status::Deployed);
        }
        let both = json!({"id": "k", "status": "testing", "kernel_binary_ref": "a", "binary_ref": "b"});
        assert_eq!(read(&both).unwrap().kernel_binary_ref.as_deref(), Some("a"));
    }

    #[test]
    fn fields_come_from_metadata_or_else_from_the_report() {
        let checksum = Digest::of(b"bytes").to_string();
        let entry = json!({
            "id": "k", "status": "validated", "blueprint_id": "b",
            "validation_report": {"input_shape": [3, 8, 8], "output_shape": [1], "checksum": checksum},
            "metadata": {"kernel_id": "k", "output_shape": [4, 8, 8], "checksum": null},
        });
        let metadata = read(&entry).unwrap();
        assert_eq!(metadata.input_shape, Some([3, 8, 8].into()));
        assert_eq!(metadata.output_shape, Some([4, 8, 8].into()));
        assert_eq!(metadata.checksum, Some(Digest::of(b"bytes")));
        assert_eq!(Metadata::from_json(metadata.to_json().as_bytes()).unwrap(), metadata);
    }

    #[test]
    fn a_malformed_entry_names_the_field() {
        let text = |value: Value| read(&value).unwrap_err().to_string();
        assert!(text(json!({"id": "k", "status": "fine"})).contains("fine"));
        assert!(text(json!({"id": "../k", "status": "validated"})).contains("refused"));
        let short = json!({"id": "k", "status": "validated", "validation_report": {"checksum": "ab"}});
        assert!(text(short).contains("checksum"));
        let shape = json!({"id": "k", "status": "validated", "metadata": {"input_shape": [-1]}});
        assert!(text(shape).contains("input_shape of metadata"));
        let other = json!({"id": "k", "status": "validated", "metadata": {"kernel_id": "l"}});
        assert!(text(other).contains("describes kernel l"));
        assert!(Metadata::from_json(b"\xff{").is_err());
    }
}
