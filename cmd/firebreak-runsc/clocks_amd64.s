// That there is a file in assembly allows a function without a body: see clocks.go.
