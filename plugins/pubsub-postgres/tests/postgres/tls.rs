//! Encryption, certificates and passwords.

/// Each has a server of its own: what is tried is how the server is set up.
mod scratch {
    use std::{fs, path::Path};

    use anyhow::Result;
    use host_core::{ErrorKind, PluginError, chain};
    use host_tests::postgres::{Cluster, Setup};
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use serde_json::json;
    use tempfile::TempDir;

    use crate::stage::Stage;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Result<Authority> {
        let mut parameters = CertificateParams::new([])?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "an authority");
        Ok(CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?)
    }

    /// A certificate and its key, in PEM.
    fn certificate(authority: &Authority, names: &[&str], common: &str) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names)?;
        parameters.distinguished_name.push(DnType::CommonName, common);
        Ok((parameters.signed_by(&key, authority)?.pem(), key.serialize_pem()))
    }

    struct Encrypted {
        stage: Stage,
        files: TempDir,
    }

    impl Encrypted {
        /// A server whose certificate is for `name`.
        async fn new(name: &str) -> Result<Self> {
            let authority = authority()?;
            let (server, key) = certificate(&authority, &[name], "the server")?;
            let (client, client_key) = certificate(&authority, &[], "carol")?;
            let root = authority.pem();
            let setup = Setup {
                settings: &[
                    "ssl = on",
                    "ssl_cert_file = 'server.pem'",
                    "ssl_key_file = 'server.key'",
                    "ssl_ca_file = 'root.pem'",
                    "password_encryption = 'scram-sha-256'",
                ],
                access: &[
                    "hostssl all carol samehost cert",
                    "hostssl all alice samehost scram-sha-256",
                    "host all alice,carol samehost reject",
                ],
                files: &[("server.pem", &server), ("server.key", &key), ("root.pem", &root)],
            };
            let stage = Stage::on(Cluster::scratch_with(setup).await?).await?;
            for role in ["alice", "carol"] {
                stage.database.sql(&format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'hunter2'"))?;
            }
            let files = tempfile::tempdir()?;
            for (name, content) in [
                ("root.pem", root),
                ("other.pem", self::authority()?.pem()),
                ("client.pem", client),
                ("client.key", client_key),
            ] {
                fs::write(files.path().join(name), content)?;
            }
            Ok(Self { stage, files })
        }

        async fn connect(&self, user: &str, query: &str) -> Result<(), PluginError> {
            let files: &Path = self.files.path();
            let query = query.replace('@', &format!("{}/", files.display()));
            let url = format!("{}?{query}", self.stage.database.url_of(user));
            self.stage.connect_as(&url, json!({})).await.map(drop)
        }

        async fn refused(&self, user: &str, query: &str) -> String {
            let error = self.connect(user, query).await.unwrap_err();
            let text = chain(&error);
            assert_eq!(error.kind(), ErrorKind::Denied, "{query}: {text}");
            assert!(!format!("{text} {error:?}").contains("hunter"), "{text}");
            text
        }
    }

    #[tokio::test]
    async fn a_certificate_is_checked_as_strictly_as_told() -> Result<()> {
        let server = Encrypted::new("127.0.0.1").await?;
        let alice = "alice:hunter2";
        for query in [
            "sslmode=require",
            "sslmode=prefer",
            "sslmode=verify-ca&sslrootcert=@root.pem",
            "sslmode=verify-full&sslrootcert=@root.pem",
        ] {
            server.connect(alice, query).await?;
        }
        for query in ["sslmode=verify-ca", "sslmode=verify-full"] {
            server.refused(alice, &format!("{query}&sslrootcert=@other.pem")).await;
        }
        // Nobody is let in without encryption, which is the default on this machine.
        server.refused(alice, "").await;
        server.refused("alice:hunter3", "sslmode=require").await;
        Ok(())
    }

    #[tokio::test]
    async fn a_certificate_of_another_name_will_do_for_verify_ca_only() -> Result<()> {
        let server = Encrypted::new("db.example").await?;
        server.connect("alice:hunter2", "sslmode=verify-ca&sslrootcert=@root.pem").await?;
        server.refused("alice:hunter2", "sslmode=verify-full&sslrootcert=@root.pem").await;
        Ok(())
    }

    #[tokio::test]
    async fn a_client_certificate_is_a_credential() -> Result<()> {
        let server = Encrypted::new("127.0.0.1").await?;
        let trusted = "sslmode=verify-full&sslrootcert=@root.pem";
        server.connect("carol", &format!("{trusted}&sslcert=@client.pem&sslkey=@client.key")).await?;
        server.refused("carol", trusted).await;
        server.refused("alice", &format!("{trusted}&sslcert=@client.pem&sslkey=@client.key")).await;
        let absent = server.connect("carol", &format!("{trusted}&sslcert=@no.pem&sslkey=@client.key")).await;
        let error = absent.unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("no.pem"), "{error}");
        Ok(())
    }
}
