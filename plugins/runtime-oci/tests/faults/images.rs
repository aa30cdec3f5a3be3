//! What an image says of the process to run.

use host_core::{ErrorKind, runtime::Runtime};
use serde_json::{Value, json};

use crate::{
    image::{Image, Layer},
    told::log,
    world::{World, elsewhere, exit, host_programs, named, spec, start, tools_layer},
};

const NAME: &str = "test/people:1";

fn people() -> Layer {
    tools_layer()
        .file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\napp:x:1234:1234::/home/app:/bin/sh\n")
        .file(
            "etc/group",
            0o644,
            "root:x:0:\napp:x:1234:\nvideo:x:2000:app,other\nsound:x:2001:other,app\nnone:x:2002:other\n",
        )
        .directory("home", 0o755)
        .directory("home/app", 0o700)
}

/// What a container of an image with this configuration prints; `command` replaces the image's own.
fn printed(config: Value, command: &[&str], binary: Option<&str>) -> String {
    elsewhere(async || {
        let mut world = World::new();
        world.config.binary = binary.map(Into::into);
        let runtime = world.open().await;
        world.load(&runtime, Image::new(NAME, people()).saying(config.clone())).await;
        let mut spec = spec("person", NAME);
        spec.mounts = host_programs();
        spec.command = command.iter().map(|word| (*word).to_owned()).collect();
        start(&runtime, &spec).await;
        let code = exit(&runtime, "person").await.code;
        let printed = log(&runtime, "person").await;
        assert_eq!(code, Some(0), "{printed}");
        runtime.remove(&named("person")).await.unwrap();
        world.is_clean().await;
        runtime.close().await.unwrap();
        printed
    })
}

const WHO: &str = "echo $(id -u) $(id -g) $(id -G) in $HOME";

#[test]
fn it_runs_as_the_images_user() {
    for binary in [None, Some("crun")] {
        for (user, expected) in [
            ("", "0 0 0 in /root\n"),
            ("app", "1234 1234 1234 2000 2001 in /home/app\n"),
            ("1234", "1234 1234 1234 2000 2001 in /home/app\n"),
            ("app:video", "1234 2000 2000 in /home/app\n"),
            ("app:2002", "1234 2002 2002 in /home/app\n"),
            ("77:78", "77 78 78 in /\n"),
        ] {
            let config = json!({ "User": user, "Entrypoint": ["/bin/sh", "-c", WHO] });
            assert_eq!(printed(config, &[], binary), expected, "{user:?} with {binary:?}");
        }
    }
}

#[tokio::test]
async fn an_image_whose_user_is_not_in_it_is_refused() {
    let world = World::new();
    let runtime = world.open().await;
    for user in ["nobody", "app:nobody", "-1", "4294967295"] {
        let config = json!({ "User": user, "Entrypoint": ["/bin/true"] });
        world.load(&runtime, Image::new(NAME, people()).saying(config)).await;
        let error = runtime.create(&spec("person", NAME)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{user:?}: {error}");
        let missing = user.rsplit(':').next().unwrap();
        assert!(error.to_string().contains(missing), "{user:?}: {error}");
    }
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[test]
fn the_entry_point_comes_before_the_command_in_the_working_directory() {
    let config = json!({
        "Entrypoint": ["/bin/sh", "-c", "echo $0 $1 $GREETING in $(pwd); ls -ld . | cut -c1-10"],
        "Cmd": ["own", "words"],
        "Env": ["PATH=/bin", "GREETING=hello"],
        "WorkingDir": "/made/by/nobody",
    });
    for binary in [None, Some("crun")] {
        assert_eq!(printed(config.clone(), &[], binary), "own words hello in /made/by/nobody\ndrwxr-xr-x\n");
        assert_eq!(
            printed(config.clone(), &["given"], binary),
            "given hello in /made/by/nobody\ndrwxr-xr-x\n"
        );
    }
    let command = json!({ "Cmd": ["/bin/sh", "-c", "echo alone"] });
    assert_eq!(printed(command, &[], None), "alone\n");
}

#[test]
fn another_user_than_root_can_open_its_output_again() {
    let config = json!({ "User": "app", "Entrypoint": ["/bin/sh", "-c", "echo again >/dev/stdout; echo wrong >/dev/stderr"] });
    for binary in [None, Some("crun")] {
        let printed = printed(config.clone(), &[], binary);
        assert!(printed.contains("again\n") && printed.contains("wrong\n"), "{printed}");
    }
}

#[test]
fn a_program_that_is_not_there_or_is_none_is_the_images_fault() {
    for binary in [None, Some("crun")] {
        elsewhere(async || {
            let mut world = World::new();
            world.config.binary = binary.map(Into::into);
            let runtime = world.open().await;
            for program in ["/nowhere", "nowhere", "/data", "/etc"] {
                let config = json!({ "Entrypoint": [program] });
                let layer = people().file("data", 0o644, "no program");
                world.load(&runtime, Image::new(NAME, layer).saying(config)).await;
                let made = match runtime.create(&spec("broken", NAME)).await {
                    Ok(_) => runtime.start(&named("broken")).await,
                    Err(error) => Err(error),
                };
                let error = made.map(|()| panic!("{program} runs")).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Invalid, "{program} with {binary:?}: {error}");
                runtime.remove(&named("broken")).await.unwrap();
            }
            world.is_clean().await;
            runtime.close().await.unwrap();
        });
    }
}
