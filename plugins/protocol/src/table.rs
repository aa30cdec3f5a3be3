//! From a list of methods to both sides of a call.

/// `interface! { runtime: Runtime = RUNTIME { 1 call health() -> RuntimeInfo; … } }` makes `impl Runtime for Remote` and
/// `serve::runtime`. An argument is written `name: its type as what is read of it`. Kinds of methods:
///
/// | kind | the trait's method |
/// |---|---|
/// | `call` | `async fn m(&self, …) -> Result<T>`; with `= x`, `x` is the answer of a plugin that has no such method |
/// | `plain` | `async fn m(&self, …) -> T`, with the answer of a plugin that has no such method, or fails |
/// | `constant` | `fn m(&self) -> T`, asked for once |
/// | `figure` | `fn m(&self) -> T`, a number; as last known |
/// | `stream value`, `stream raw` | `async fn m(&self, …) -> Result<BoxStream<'static, Result<T>>>`; values, or bytes |
/// | `progress` | `async fn m(&self, …, OnProgress<'_>) -> Result<T>` |
/// | `post` | `fn m(&self, …)`, whose answer nobody waits for |
macro_rules! interface {
    ($name:ident: $trait:ident = $id:ident { $($methods:tt)* }) => {
        interface! { @next [$name $trait $id plugin encoding request emitter] [] [] [] $($methods)* }
    };

    (@next [$name:ident $trait:ident $id:ident $plugin:ident $encoding:ident $request:ident $emitter:ident]
        [$($host:tt)*] [$($arms:tt)*] [$($constants:tt)*]
    ) => {
        #[async_trait::async_trait]
        impl $trait for Remote { $($host)* }

        pub(super) const CONSTANTS: &[u32] = &[$($constants)*];

        #[allow(unused_variables, reason = "not every interface has streams")]
        #[allow(clippy::too_many_lines, reason = "one arm for each method")]
        pub(super) fn serve(
            $plugin: &Arc<dyn $trait>,
            number: u16,
            $encoding: Encoding,
            $request: &[u8],
            $emitter: Arc<dyn Emitter>,
        ) -> Served {
            match number {
                $($arms)*
                _ => Served::Unknown,
            }
        }
    };

    (@next [$name:ident $trait:ident $id:ident $plugin:ident $encoding:ident $request:ident $emitter:ident]
        [$($host:tt)*] [$($arms:tt)*] $constants:tt
        $number:literal call $method:ident($($arg:ident: $ty:ty as $owned:ty),*) -> $answer:ty $(= $default:expr)?;
        $($rest:tt)*
    ) => {
        interface! { @next [$name $trait $id $plugin $encoding $request $emitter]
            [$($host)*
                async fn $method(&self $(, $arg: $ty)*) -> Result<$answer, PluginError> {
                    let request = request!(self.caller.encoding(); $($arg: $ty as $owned),*);
                    match self.caller.call(super::method($id, $number), request).await? {
                        Answer::Body(body) => self.caller.encoding().decode(&body),
                        Answer::Unimplemented => default!($method $(= $default)?),
                    }
                }
            ]
            [$($arms)*
                $number => {
                    let asked = arguments!($encoding, $request; $($arg: $owned),*);
                    let plugin = Arc::clone($plugin);
                    Served::Later(Box::pin(async move {
                        let answer = plugin
                            .$method($(<$owned as Wire<'_, $ty>>::lend(&asked.$arg)),*)
                            .await?;
                        $encoding.encode(&answer)
                    }))
                }
            ]
            $constants $($rest)*
        }
    };

    (@next [$name:ident $trait:ident $id:ident $plugin:ident $encoding:ident $request:ident $emitter:ident]
        [$($host:tt)*] [$($arms:tt)*] $constants:tt
        $number:literal plain $method:ident() -> $answer:ty = $default:expr;
        $($rest:tt)*
    ) => {
        interface! { @next [$name $trait $id $plugin $encoding $request $emitter]
            [$($host)*
                async fn $method(&self) -> $answer {
                    let Ok(request) = self.caller.encoding().encode(&NoArguments {}) else { return $default };
                    match self.caller.call(super::method($id, $number), request).await {
                        Ok(Answer::Body(body)) => self.caller.encoding().decode(&body).unwrap_or_else(|_| $default),
                        _ => $default,
                    }
                }
            ]
            [$($arms)*
                $number => {
                    let plugin = Arc::clone($plugin);
                    Served::Later(Box::pin(async move { $encoding.encode(&plugin.$method().await) }))
                }
            ]
            $constants $($rest)*
        }
    };

    (@next [$name:ident $trait:ident $id:ident $plugin:ident $encoding:ident $request:ident $emitter:ident]
        [$($host:tt)*] [$($arms:tt)*] [$($constants:tt)*]
        $number:literal constant $method:ident() -> $answer:ty;
        $($rest:tt)*
    ) => {
        interface! { @next [$name $trait $id $plugin $encoding $request $emitter]
            [$($host)*
                fn $method(&self) -> $answer {
                    self.constant(super::method($id, $number)).unwrap_or_default()
                }
            ]
            [$($arms)* $number => Served::Now($encoding.encode(&$plugin.$method())),]
            [$($constants)* super::method($id, $number),]
            $($rest)*
        }
    };

    (@next [$name:ident $trait:ident $id:ident $plugin:ident $encoding:ident $request:ident $emitter:ident]
        [$($host:tt)*] [$($arms:tt)*] $constants:tt
        $number:literal figure $method:ident() -> $answer:ty;
        $($rest:tt)*
    ) => {
        interface! { @next [$name $trait $id $plugin $encoding $request $emitter]
            [$($host)*
                fn $method(&self) -> $answer {
                    self.caller.figure(super::method($id, $number)).try_into().unwrap_or(<$answer>::MAX)
                }
            ]
            [$($arms)* $number => Served::Now($encoding.encode(&$plugin.$method())),]
            $constants $($rest)*
        }
    };

    (@next [$name:ident $trait:ident $id:ident $plugin:ident $encoding:ident $request:ident $emitter:ident]
        [$($host:tt)*] [$($arms:tt)*] $constants:tt
        $number:literal stream $form:ident $method:ident($($arg:ident: $ty:ty as $owned:ty),*) -> $item:ty;
        $($rest:tt)*
    ) => {
        interface! { @next [$name $trait $id $plugin $encoding $request $emitter]
            [$($host)*
                async fn $method(
                    &self $(, $arg: $ty)*
                ) -> Result<BoxStream<'static, Result<$item, PluginError>>, PluginError> {
                    let request = request!(self.caller.encoding(); $($arg: $ty as $owned),*);
                    match self.caller.open(super::method($id, $number), request).await? {
                        Some(items) => Ok($form::decode(self.caller.encoding(), items)),
                        None => unimplemented(stringify!($method)),
                    }
                }
            ]
            [$($arms)*
                $number => {
                    let asked = arguments!($encoding, $request; $($arg: $owned),*);
                    let plugin = Arc::clone($plugin);
                    Served::Later(Box::pin(async move {
                        let items = plugin
                            .$method($(<$owned as Wire<'_, $ty>>::lend(&asked.$arg)),*)
                            .await?;
                        forward(items, $emitter, move |item| $form::encode($encoding, item)).await
                    }))
                }
            ]
            $constants $($rest)*
        }
    };

    (@next [$name:ident $trait:ident $id:ident $plugin:ident $encoding:ident $request:ident $emitter:ident]
        [$($host:tt)*] [$($arms:tt)*] $constants:tt
        $number:literal progress $method:ident($($arg:ident: $ty:ty as $owned:ty),*) -> $answer:ty;
        $($rest:tt)*
    ) => {
        interface! { @next [$name $trait $id $plugin $encoding $request $emitter]
            [$($host)*
                async fn $method(&self $(, $arg: $ty)*, progress: OnProgress<'_>) -> Result<$answer, PluginError> {
                    let encoding = self.caller.encoding();
                    let request = request!(encoding; $($arg: $ty as $owned),*);
                    let tell = move |item: Vec<u8>| {
                        // One that cannot be read is one that is not told.
                        if let Ok(at) = encoding.decode(&item) {
                            progress(at);
                        }
                    };
                    match self.caller.call_with_items(super::method($id, $number), request, &tell).await? {
                        Answer::Body(body) => encoding.decode(&body),
                        Answer::Unimplemented => unimplemented(stringify!($method)),
                    }
                }
            ]
            [$($arms)*
                $number => {
                    let asked = arguments!($encoding, $request; $($arg: $owned),*);
                    let plugin = Arc::clone($plugin);
                    Served::Later(Box::pin(async move {
                        let tell = move |at| {
                            if let Ok(item) = $encoding.encode(&at) {
                                $emitter.try_emit(&item);
                            }
                        };
                        let answer = plugin
                            .$method($(<$owned as Wire<'_, $ty>>::lend(&asked.$arg),)* &tell)
                            .await?;
                        $encoding.encode(&answer)
                    }))
                }
            ]
            $constants $($rest)*
        }
    };

    (@next [$name:ident $trait:ident $id:ident $plugin:ident $encoding:ident $request:ident $emitter:ident]
        [$($host:tt)*] [$($arms:tt)*] $constants:tt
        $number:literal post $method:ident($($arg:ident: $ty:ty as $owned:ty),*);
        $($rest:tt)*
    ) => {
        interface! { @next [$name $trait $id $plugin $encoding $request $emitter]
            [$($host)*
                fn $method(&self $(, $arg: $ty)*) {
                    let request = || Ok::<_, PluginError>(request!(self.caller.encoding(); $($arg: $ty as $owned),*));
                    // What cannot be encoded could not be sent either.
                    if let Ok(request) = request() {
                        self.caller.post(super::method($id, $number), request);
                    }
                }
            ]
            [$($arms)*
                $number => {
                    let asked = arguments!($encoding, $request; $($arg: $owned),*);
                    $plugin.$method($(<$owned as Wire<'_, $ty>>::lend(&asked.$arg)),*);
                    Served::Now(Ok(Vec::new()))
                }
            ]
            $constants $($rest)*
        }
    };
}

/// The bytes of a request: a map of the named arguments.
macro_rules! request {
    ($encoding:expr; $($arg:ident: $ty:ty as $owned:ty),*) => {{
        #[derive(serde::Serialize)]
        struct Request<$($arg),*> {
            $($arg: $arg),*
        }
        $encoding.encode(&Request { $($arg: <$owned as Wire<'_, $ty>>::write($arg)),* })?
    }};
}

/// The arguments of a request, or the answer that there are none.
macro_rules! arguments {
    ($encoding:expr, $request:expr; $($arg:ident: $owned:ty),*) => {{
        #[derive(serde::Deserialize)]
        struct Arguments {
            $($arg: $owned),*
        }
        match $encoding.decode::<Arguments>($request) {
            Ok(arguments) => arguments,
            Err(error) => return Served::Now(Err(error)),
        }
    }};
}

/// The answer of a plugin that has no such method.
macro_rules! default {
    ($method:ident) => {
        unimplemented(stringify!($method))
    };
    ($method:ident = $default:expr) => {
        Ok($default)
    };
}
