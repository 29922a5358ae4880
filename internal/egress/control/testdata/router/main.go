// Command router is the program of a router for tests: that of `firebreak router`.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/firebreak-dev/firebreak/internal/egress/control"
)

func main() {
	if err := control.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
