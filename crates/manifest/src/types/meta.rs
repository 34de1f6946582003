//! What every object of a cluster has.

use std::collections::BTreeMap;

use crate::read::{Silent, object};

object! {
    /// What an object is called, and what is noted beside it.
    ObjectMeta {
        /// The object's name: lower-case letters, digits, `-` and `.`, at most 253 characters.
        "name" name: Option<String>,
        /// A name is made from this and random letters.
        "generateName" generate_name: Option<String>,
        /// Where a cluster keeps it. Here everything is in one place; the name is kept.
        "namespace" namespace: Option<String>,
        /// Words to find it by.
        "labels" labels: BTreeMap<String, String>,
        /// Notes of programs.
        "annotations" annotations: BTreeMap<String, String>,
        /// Set by a cluster.
        "creationTimestamp" creation_timestamp: Option<Silent>,
        /// Set by a cluster.
        "deletionGracePeriodSeconds" deletion_grace_period_seconds: Option<Silent>,
        /// Set by a cluster.
        "deletionTimestamp" deletion_timestamp: Option<Silent>,
        /// What has to be done before a cluster removes it.
        "finalizers" finalizers: Option<Silent>,
        /// Set by a cluster.
        "generation" generation: Option<Silent>,
        /// Set by a cluster.
        "managedFields" managed_fields: Option<Silent>,
        /// Whose removal removes it.
        "ownerReferences" owner_references: Option<Silent>,
        /// Set by a cluster.
        "resourceVersion" resource_version: Option<Silent>,
        /// Set by a cluster.
        "selfLink" self_link: Option<Silent>,
        /// Set by a cluster.
        "uid" uid: Option<Silent>,
    }

    /// The name of another object of the same kind as the field says.
    LocalReference {
        /// Its name.
        "name" name: String,
        /// The machine starts without it, too.
        "optional" optional: Option<bool>,
    }
}
