//go:build !linux && !darwin

package server

import (
	"errors"
	"net"
	"strings"
)

// peerUID cannot ask this system who connected; callers need an API key.
func peerUID(*net.UnixConn) (int, error) {
	return -1, errors.New("this system does not say who connected to a unix socket")
}

func isAddrInUse(err error) bool { return strings.Contains(err.Error(), "in use") }

func isRefused(err error) bool { return strings.Contains(err.Error(), "refused") }
