// Command client fetches a URL twice and says by what.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	for range 2 {
		resp, err := http.Get(os.Args[1])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Printf("%s %s %v\n", resp.Proto, b, err)
	}
}
