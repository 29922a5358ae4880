import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** Fetches a URL by both versions of HTTP, with what Java trusts by itself. */
public class Client {
    public static void main(String[] args) throws Exception {
        for (HttpClient.Version v : HttpClient.Version.values()) {
            HttpClient client = HttpClient.newBuilder().version(v).build();
            for (int i = 0; i < 2; i++) {
                var answer = client.send(HttpRequest.newBuilder(URI.create(args[0])).build(), BodyHandlers.ofString());
                System.out.println(answer.version() + " " + answer.statusCode() + " " + answer.body());
            }
        }
    }
}
