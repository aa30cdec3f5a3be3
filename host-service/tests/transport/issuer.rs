//! An issuer of tokens: good ones, and every bad one.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac,
    rand::SystemRandom,
    rsa::{KeyPairComponents, PublicKeyComponents},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://issuer.example/";
pub(crate) const AUDIENCE: &str = "https://host.example";

/// The key of RFC 7515, appendix A.2, which is everybody's: n, e, d, p, q, dP, dQ, qInv.
const RSA: [&str; 8] = [
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    "AQAB",
    "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",
    "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc",
    "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc",
    "BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0",
    "h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU",
    "IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoOPLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U",
];

/// That appendix's own token: rightly signed, and for nobody here.
pub(crate) const RFC_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";

pub(crate) struct Issuer {
    rsa: RsaKeyPair,
    elliptic: EcdsaKeyPair,
    /// What its keys for signatures are called before they are "rsa" and "elliptic".
    generation: &'static str,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        Self::rotated("")
    }

    /// With other keys than before, of other names.
    pub(crate) fn rotated(generation: &'static str) -> Self {
        let [n, e, d, p, q, dp, dq, q_inv] = RSA.map(|part| URL_SAFE_NO_PAD.decode(part).unwrap());
        let public_key = PublicKeyComponents { n, e };
        let rsa = KeyPairComponents { public_key, d, p, q, dP: dp, dQ: dq, qInv: q_inv };
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let elliptic = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self {
            rsa: RsaKeyPair::from_components(&rsa).unwrap(),
            elliptic: EcdsaKeyPair::from_pkcs8(algorithm, elliptic.as_ref(), &random).unwrap(),
            generation,
        }
    }

    /// Its public keys, among others that are no concern of this host.
    pub(crate) fn keys(&self) -> Value {
        let point = &self.elliptic.public_key().as_ref()[1..];
        let [x, y] = [&point[..32], &point[32..]].map(|half| URL_SAFE_NO_PAD.encode(half));
        json!({"keys": [
            {"kty": "oct", "kid": "symmetric", "k": "c2VjcmV0"},
            {"kty": "something-new", "kid": "new"},
            {"kty": "RSA", "kid": "encryption", "use": "enc", "n": RSA[0], "e": RSA[1]},
            {"kty": "RSA", "kid": self.id("rsa"), "alg": "RS256", "use": "sig", "n": RSA[0], "e": RSA[1]},
            {"kty": "EC", "kid": self.id("elliptic"), "crv": "P-256", "x": x, "y": y},
        ]})
    }

    /// A good token of `subject`.
    pub(crate) fn token(&self, subject: &str) -> String {
        self.rs256(&claims(subject))
    }

    pub(crate) fn rs256(&self, claims: &Value) -> String {
        self.rsa_signed(&json!({"alg": "RS256", "kid": self.id("rsa"), "typ": "JWT"}), claims)
    }

    fn id(&self, key: &str) -> String {
        format!("{}{key}", self.generation)
    }

    pub(crate) fn rsa_signed(&self, header: &Value, claims: &Value) -> String {
        signed(header, claims, |message| {
            let mut signature = vec![0; self.rsa.public().modulus_len()];
            self.rsa.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
            signature
        })
    }

    pub(crate) fn es256(&self, claims: &Value) -> String {
        signed(&json!({"alg": "ES256", "kid": self.id("elliptic")}), claims, |message| {
            self.elliptic.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
        })
    }
}

/// What a good token says.
pub(crate) fn claims(subject: &str) -> Value {
    json!({"sub": subject, "iss": ISSUER, "aud": ["https://other.example", AUDIENCE], "exp": now() + 60, "iat": now()})
}

/// The same with some claims changed, or taken out where they are null.
pub(crate) fn claims_but(changes: Value) -> Value {
    let mut claims = claims("ann");
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

pub(crate) fn hs256(key: &[u8], claims: &Value) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let header = json!({"alg": "HS256", "kid": "rsa"});
    signed(&header, claims, |message| hmac::sign(&key, message).as_ref().to_vec())
}

pub(crate) fn signed(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

pub(crate) fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}
