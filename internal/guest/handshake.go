package guest

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// shakeHands brings both ends to a frame boundary and exchanges hellos. It
// blocks until the agent answers or conn is closed.
func shakeHands(conn net.Conn, d *Decoder, cfg Config) (Hello, error) {
	payload := make([]byte, resetSize)
	rand.Read(payload[:NonceSize])
	binary.BigEndian.PutUint64(payload[NonceSize:], uint64(time.Now().UnixNano()))
	nonce := payload[:NonceSize]

	// Writing and hunting go on at once: the guest may be stuck writing to a
	// full stream, and reads nothing until we have drained it.
	acked := make(chan struct{})
	wrote := make(chan error, 1)
	go func() { wrote <- writeReset(conn, AppendFrame(nil, TypeReset, 0, payload), acked) }()
	ack, err := d.Hunt(TypeResetAck, func(p []byte) bool { return bytes.Equal(p[:NonceSize], nonce) })
	close(acked)
	if err != nil {
		conn.Close() // so that the writer ends
		<-wrote
		return Hello{}, err
	}
	if err := <-wrote; err != nil {
		return Hello{}, err
	}

	body, err := json.Marshal(Hello{
		Protocol: ProtocolVersion,
		Nonce:    hex.EncodeToString(ack[NonceSize : 2*NonceSize]),
		Settings: &Settings{User: cfg.User, PIDs: cfg.PIDs, Memory: cfg.Memory, Window: cfg.Window},
	})
	if err != nil {
		return Hello{}, err
	}
	if _, err := conn.Write(AppendFrame(nil, TypeHello, 0, body)); err != nil {
		return Hello{}, err
	}
	return awaitHello(d)
}

// writeReset sends reset, and when no answer comes filler and reset again.
func writeReset(conn net.Conn, reset []byte, acked <-chan struct{}) error {
	if _, err := conn.Write(reset); err != nil {
		return err
	}
	t := time.NewTimer(resetRetry)
	defer t.Stop()
	select {
	case <-acked:
		return nil
	case <-t.C:
	}
	// In pieces: once the answer is here, the rest of the filler is pointless,
	// but the guest must see a frame boundary or hunt, so reset still follows.
	filler := make([]byte, 32<<10)
	for left := MaxFrame; left > 0; left -= len(filler) {
		if _, err := conn.Write(filler[:min(left, len(filler))]); err != nil {
			return err
		}
	}
	_, err := conn.Write(reset)
	return err
}

// awaitHello reads the guest's hello. Further acks of the same reset may
// precede it; the nonce in them needs no check, they are ignored.
func awaitHello(d *Decoder) (Hello, error) {
	for acks := 0; ; acks++ {
		h, err := d.Next()
		if err != nil {
			return Hello{}, err
		}
		p, err := d.Payload(h)
		if err != nil {
			return Hello{}, err
		}
		switch {
		case h.Type == TypeResetAck && acks < 2:
			continue
		case h.Type != TypeHello:
			return Hello{}, violation("frame type %#x instead of hello", byte(h.Type))
		}
		var hello Hello
		if err := json.Unmarshal(p, &hello); err != nil {
			return Hello{}, violation("hello: %v", err)
		}
		if hello.Protocol != ProtocolVersion {
			return Hello{}, sandbox.Errorf("open", sandbox.KindUnsupported, "the agent speaks protocol %d, we speak %d", hello.Protocol, ProtocolVersion).
				WithHint("the sandbox was made by another version; make a new one")
		}
		return hello, nil
	}
}
